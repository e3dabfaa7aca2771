"""How much of the time that somebody had a GPU was idle, active on part of it, busy below its peak, or effective.

Four levels, each at most the one before: the whole ≥ kernels running ≥ multiprocessors busy ≥ the part of the dense peak that
was achieved. The steps of the waterfall are the gaps between them, so that they sum to the whole, and more idle time can never
make the effective part larger.

- kernels running: `gpu_active` (NVML's utilisation.gpu, DCGM's GR_ENGINE_ACTIVE): says only that any kernel ran
- multiprocessors busy: `sm_active` (DCGM_FI_PROF_SM_ACTIVE: "the fraction of time at least one warp was active on a
  multiprocessor, averaged over all multiprocessors", NVIDIA, DCGM user guide, "Profiling metrics")
- achieved: MFU where the owner's model FLOPs are known; else `tensor_active` (PIPE_TENSOR_ACTIVE: "the fraction of cycles the tensor
  pipe was active", which at 1 is the dense peak); else, as an upper bound that is named as such, `sm_active`

A level that was not measured makes no gap: what lies between its neighbours is then not measured, or, below running
kernels, counted as low SM, since it is known to be below the peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macadam.compute.waterfall.seen import WHOLE, Seen
from macadam.compute.waterfall.types import Step
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
else:
    np = lazy("numpy")

STEPS: tuple[Step, ...] = ("not_measured", "idle", "low_sm", "below_peak", "effective")
NOTHING, MFU, TENSOR, SM = range(4)
"""Places in `types.Basis`."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Parts of pieces, in order of the pieces. piece, step (of STEPS), weight (millionths, above 0), basis: shape (n,)."""

    piece: "Ints"
    step: "Ints"
    weight: "Ints"
    basis: "Ints"


def cut(seen: Seen, rows: "Ints", mfu: Mapping[str, float]) -> Cut:
    """rows: the usage row of each piece. mfu: owner → utilisation. Raises InvalidInput for one that is not 0 to 1."""
    wrong = {owner: value for owner, value in mfu.items() if not 0 <= value <= 1}
    if wrong:
        owner, value = next(iter(wrong.items()))
        raise InvalidInput(
            f"The MFU of {owner} is {value}; it lies between 0 and 1.",
            next_step="Compare its model FLOPs with its GPU's dense peak for the number format that it used.",
        )
    known = np.array([mfu.get(name, np.nan) for name in seen.owners])
    told = known[seen.owner[rows]] if len(rows) else np.zeros(0)
    weights, basis = levels(seen.gpu[rows], seen.sm[rows], seen.tensor[rows], told)
    piece, step = np.nonzero(weights)
    kept = weights[piece, step]
    return Cut(
        piece=piece, step=step, weight=kept, basis=np.where(step == STEPS.index("effective"), basis[piece], NOTHING)
    )


def levels(gpu: "Floats", sm: "Floats", tensor: "Floats", mfu: "Floats") -> "tuple[Ints, Ints]":
    """Millionths in each of STEPS, shape (n, 5), each row summing to a million; and the basis of the last, shape (n,).

    All in 0 to 1, NaN = not measured, shape (n,).
    """
    basis = np.select([~np.isnan(mfu), ~np.isnan(tensor), ~np.isnan(sm)], [MFU, TENSOR, SM], NOTHING)
    achieved = np.select([basis == MFU, basis == TENSOR, basis == SM], [mfu, tensor, sm], 0.0)
    running = _whole(np.where(np.isnan(gpu), 1.0, gpu))
    # What is not known to be busy is counted from the level above it.
    busy = np.minimum(running, np.where(np.isnan(sm), running, _whole(np.nan_to_num(sm))))
    # MFU is counted apart from the counters, so a sampled `sm_active` below it gives way.
    busy = np.where(basis == MFU, np.minimum(running, np.maximum(busy, _whole(achieved))), busy)
    reached = np.minimum(busy, _whole(achieved))
    low, below = running - busy, busy - reached
    only_running = np.isnan(sm)
    low, below = np.where(only_running, running - reached, low), np.where(only_running, 0, below)
    dark = np.where(basis == NOTHING, running, 0)
    unknown = np.isnan(gpu)
    dark = np.where(unknown, np.where(basis == NOTHING, WHOLE, low), dark)
    low = np.where(unknown | (basis == NOTHING), 0, low)
    made = np.stack([dark, WHOLE - running, low, below, reached], axis=1)
    return made, basis


def _whole(part: "Floats") -> "Ints":
    found: Ints = np.round(part * WHOLE).astype(np.int64)
    return found
