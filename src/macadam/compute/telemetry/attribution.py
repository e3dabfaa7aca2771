"""Whose each reading is. Pure: samples, pods and assignments in, claimants out.

The most direct evidence counts: whose processes are on the device, else whose pod it is in, else to whom it was assigned, else
nobody. What several have at once is shared out, and sums to no more than the whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macadam.compute.telemetry.frame import SECOND, Frame
from macadam.compute.telemetry.types import Holding, Pod
from macadam.lazy import lazy
from macadam.values import require_aware

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from macadam.compute.telemetry.frame import Floats, Ints, Mask
else:
    np = lazy("numpy")
    pa = lazy("pyarrow")
pc: Any = lazy("pyarrow.compute")

_WHOLE = 0.999
_UNKNOWN_MEMORY = -1.0
_FOREVER = 2**62


@dataclass(frozen=True, kw_only=True)
class Claimants:
    """Who had what, in order of rows: row of the frame, which of `people` (0 is nobody), part of the device (0 to 1), and
    bytes that the claimant itself had (-1: ask the device). Every row has at least one; shape (m,).
    """

    people: list[tuple[str, str]]
    row: "Ints"
    who: "Ints"
    share: "Floats"
    memory: "Floats"

    def owned(self, rows: int) -> "Mask":
        """By row: whether it is anybody's."""
        found = np.zeros(rows, dtype=bool)
        found[self.row[self.who > 0]] = True
        return found

    def rows_of(self, project: str) -> "Ints":
        """Rows that are a project's, whole or in part."""
        of_project = np.array([name == project for name, _ in self.people])
        return np.unique(self.row[of_project[self.who]])


class _People:
    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {("", ""): 0}

    def code(self, project: str, owner: str) -> int:
        return self.known.setdefault((project, owner), len(self.known))


def claimants(frame: Frame, pods: Mapping[tuple[str, str], Pod], holdings: Iterable[Holding]) -> Claimants:
    """pods: by namespace and name. A pod that is not among them is 'pod:NAMESPACE/NAME' of no project."""
    people = _People()
    sharers = np.bincount(frame.reading, minlength=len(frame.first))[frame.reading].astype(np.float64)
    claimed, entries = _by_processes(frame, people, sharers)
    pod = _by_pods(frame, people, pods)
    in_pod = (pod > 0) & ~claimed
    rows = np.flatnonzero(in_pod)
    entries.append((rows, pod[rows], 1 / sharers[rows], np.full(len(rows), _UNKNOWN_MEMORY)))
    entries += _by_assignment(frame, people, holdings, free=~claimed & ~in_pod, sharers=sharers)
    row, who, share, memory = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    order = np.lexsort((who, row))
    return Claimants(
        people=list(people.known),
        row=row[order].astype(np.int64),
        who=who[order].astype(np.int64),
        share=share[order],
        memory=memory[order],
    )


_Entry = tuple["Ints", "Ints", "Floats", "Floats"]


def _by_processes(frame: Frame, people: _People, sharers: "Floats") -> "tuple[Mask, list[_Entry]]":
    """Rows on which somebody's processes are: (which, their claimants). Several owners share the device equally."""
    lists: Any = frame.rows.column("claims").combine_chunks()
    count = np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
    claimed = count > 0
    if not claimed.any():
        return claimed, []
    row = np.repeat(np.arange(len(frame)), count)
    flat = pc.list_flatten(lists)
    projects = pc.struct_field(flat, "project").to_pylist()
    owners = pc.struct_field(flat, "owner").to_pylist()
    who = np.array([people.code(p, o) for p, o in zip(projects, owners, strict=True)], dtype=np.int64)
    memory = pc.fill_null(pc.struct_field(flat, "memory").cast(pa.float64()), _UNKNOWN_MEMORY)
    share = 1 / (count[row] * sharers[row])
    return claimed, [(row, who, share, np.asarray(memory.to_numpy(zero_copy_only=False)))]


def _by_pods(frame: Frame, people: _People, pods: Mapping[tuple[str, str], Pod]) -> "Ints":
    """By row: whose pod the device is in; 0 if in none."""
    spaces, space = frame.text("namespace")
    names, name = frame.text("pod")
    pairs, place = np.unique(space * max(len(names), 1) + name, return_inverse=True)
    codes = [0] * len(pairs)
    for number, pair in enumerate(pairs.tolist()):
        namespace, pod = spaces[pair // max(len(names), 1)], names[pair % max(len(names), 1)]
        if pod:
            known = pods.get((namespace, pod))
            whose = (known.project, known.owner) if known else ("", f"pod:{namespace}/{pod}")
            codes[number] = people.code(*whose)
    return np.array(codes or [0], dtype=np.int64)[place]


def _by_assignment(
    frame: Frame, people: _People, holdings: Iterable[Holding], *, free: "Mask", sharers: "Floats"
) -> "list[_Entry]":
    """Rows that nothing else tells about: by who held the device in the middle of their interval; the rest is nobody's."""
    place = {device: number for number, device in enumerate(frame.devices)}
    middle = frame.at - (frame.seconds[frame.reading] / 2 * SECOND).astype(np.int64)
    bounds = np.searchsorted(frame.device, np.arange(len(frame.devices) + 1))
    taken = np.zeros(len(frame))
    entries: list[_Entry] = []
    for holding in sorted(holdings, key=lambda h: (h.device, h.start, h.project, h.owner)):
        number = place.get(holding.device)
        if number is None:
            continue
        low, high = int(bounds[number]), int(bounds[number + 1])
        start = int(require_aware(holding.start, "start").timestamp() * SECOND)
        end = _FOREVER if holding.end is None else int(require_aware(holding.end, "end").timestamp() * SECOND)
        rows = low + np.arange(*np.searchsorted(middle[low:high], (start, end)))
        rows = rows[free[rows]]
        if len(rows):
            share = np.minimum(holding.share, np.maximum(1 - taken[rows], 0.0))
            taken[rows] += share
            whose = np.full(len(rows), people.code(holding.project, holding.owner))
            kept = share > 0
            entries.append(
                (rows[kept], whose[kept], (share / sharers[rows])[kept], np.full(int(kept.sum()), _UNKNOWN_MEMORY))
            )
    rest = np.flatnonzero(free & (taken < _WHOLE))
    left = (1 - taken[rest]) / sharers[rest]
    entries.append((rest, np.zeros(len(rest), dtype=np.int64), left, np.full(len(rest), _UNKNOWN_MEMORY)))
    return entries
