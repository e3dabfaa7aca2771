"""Which readings are not to be believed, and why. Pure: samples in, findings out.

GPUs are misread in known ways: a driver without profiling rights gives zeros, an exporter repeats a device's figure for each
of its pods, counters restart, clocks differ. Each check says what it looks at and the threshold; nothing is charged on a row
that one of them suspects. A check that could hit an honest device is a bug: a property test holds them to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from macadam.compute.catalogue import buses
from macadam.compute.telemetry import mig
from macadam.compute.telemetry.frame import SECOND, Frame
from macadam.compute.telemetry.types import GPU, RATES, RATIOS, Finding
from macadam.lazy import lazy

if TYPE_CHECKING:
    import numpy as np

    from macadam.compute.telemetry.frame import Floats, Ints, Mask
else:
    np = lazy("numpy")

_BUSY, _WORKS, _TOUCHED = 0.9, 0.5, 0.05
_TOLERANCE = 0.05
"""Ratios are means over windows that do not begin at the same microsecond."""
_ROUNDING = 0.01
_AHEAD = 60
"""Seconds: what NTP keeps machines within, a hundred times over."""
_POWER_FACTOR = 1.2
_STILL, _STUCK = 300, 150
"""Seconds in which a busy device's sensors cannot all stand still, and its energy counter cannot: exporters read every 30 s
by default, and some are set to two minutes."""
_SLOWEST = 120.0
"""Seconds between two readings of an exporter at most that are allowed for where a counter moves in steps."""
_UNMARKED = 3000.0
"""W that no GPU draws: what a counter that began anew is held against where the product is not known."""
_RATIO = 0.011
"""Utilisation that never exceeds this, on a device that works, was divided by a hundred once too often."""
_SHEET = 1.2
"""Of the data sheet's memory: drivers count up to 8% more."""
_WINDOW, _LEAST = 600, 8
"""Seconds over which power and energy are compared, and the readings that this takes."""
_HOTTEST = 200.0
_AMOUNTS = (
    "power", "power_limit", "gpu_power", "host_cpu", "host_cores", "sm_clock", "memory_clock", "throttle", *RATES
)  # fmt: skip
"""At least 0."""
_PROFILED = ("gr_active", "sm_active", "dram_active")


@dataclass(frozen=True, kw_only=True)
class Check:
    """find: the rows that it hits. shown: the columns that are its evidence. suspect: whether nothing may be charged on
    them; False: it is only said.
    """

    name: str
    about: str
    threshold: str
    shown: tuple[str, ...]
    find: "Callable[[Frame, Mask], Mask]"
    suspect: bool = True


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """By row: 0 if it is believed, else one more than the number of the first check in CHECKS that suspects it."""

    suspect: "Ints"
    findings: tuple[Finding, ...]

    @staticmethod
    def reasons() -> list[str]:
        """What the numbers stand for; '' first."""
        return ["", *(check.name for check in CHECKS)]


def judge(frame: Frame, owned: "Mask") -> Verdict:
    """owned: by row, whether anybody is known to have had the device."""
    suspect = np.zeros(len(frame), dtype=np.int64)
    findings: list[Finding] = []
    with np.errstate(invalid="ignore"):  # comparisons with what was not measured are false, as they should be
        for number, check in enumerate(CHECKS, 1):
            hit = check.find(frame, owned)
            if not hit.any():
                continue
            findings += _findings(frame, check, hit)
            if check.suspect:
                suspect[hit & (suspect == 0)] = number
    return Verdict(suspect=suspect, findings=tuple(findings))


def _findings(frame: Frame, check: Check, hit: "Mask") -> list[Finding]:
    rows = np.flatnonzero(hit)
    devices, starts, counts = np.unique(frame.device[rows], return_index=True, return_counts=True)
    nodes, node = frame.text("node")
    found = []
    for device, start, count in zip(devices.tolist(), starts.tolist(), counts.tolist(), strict=True):
        mine = rows[start : start + count]
        first = int(mine[0])
        found.append(
            Finding(
                check=check.name,
                device=frame.devices[device],
                node=nodes[int(node[first])],
                count=count,
                first=_instant(int(frame.at[first])),
                last=_instant(int(frame.at[int(mine[-1])])),
                evidence=_evidence(frame, check, first),
                threshold=check.threshold,
                suspect=check.suspect,
            )
        )
    return found


def _evidence(frame: Frame, check: Check, row: int) -> str:
    said = []
    for name in check.shown:
        value = frame.rows.column(name)[row].as_py()
        text = f"{value:.6g}" if isinstance(value, float) else "not measured" if value is None else str(value)
        said.append(f"{name} {text or repr('')}")
    return ", ".join(said)


def _instant(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / SECOND, UTC)


# --- the checks


def _lost(frame: Frame, _owned: "Mask") -> "Mask":
    names, code = frame.text("error")
    return np.asarray(np.array([bool(name) for name in names] or [False])[code])


def _out_of_range(frame: Frame, _owned: "Mask") -> "Mask":
    hit = np.zeros(len(frame), dtype=bool)
    for name in (*RATIOS, *_AMOUNTS, "temperature"):
        value = frame.number(name)
        hit |= frame.given(name) & ~np.isfinite(value)
        if name in RATIOS:
            hit |= (value < 0) | (value > 1 + _ROUNDING)
        elif name == "temperature":
            hit |= (value < -_HOTTEST) | (value > _HOTTEST)
        else:
            hit |= value < 0
    used, total = frame.number("memory_used"), frame.number("memory_total")
    most = frame.memory * _SHEET
    hit |= (used < 0) | (used > total * (1 + _ROUNDING)) | (used > most) | (total > most)
    return hit | (frame.counter < 0)


def _profiling_off(frame: Frame, _owned: "Mask") -> "Mask":
    measured = np.zeros(len(frame), dtype=bool)
    active = np.zeros(len(frame), dtype=bool)
    for name in _PROFILED:
        value = frame.number(name)
        # A kernel that spins touches no memory, so that field alone says nothing.
        measured |= ~np.isnan(value) & (name != "dram_active")
        active |= value > 0
    return (frame.number("gpu_active") >= _BUSY) & measured & ~active


def _same_for_all(frame: Frame, _owned: "Mask") -> "Mask":
    sharers = np.bincount(frame.reading, minlength=len(frame.first))[frame.reading]
    parts, part = frame.text("part")
    named = np.array([bool(name) for name in parts] or [False])[part]
    shared = (sharers > 1) & named & _is_gpu(frame)
    if not shared.any():
        return np.asarray(shared)
    busy = np.zeros(len(frame), dtype=bool)
    differs = np.zeros(len(frame), dtype=bool)
    for name in RATIOS:
        value = frame.number(name)
        head = value[frame.first][frame.reading]
        busy |= value > 0
        differs |= (value != head) & ~(np.isnan(value) & np.isnan(head))
    varied = np.bincount(frame.reading, weights=differs, minlength=len(frame.first))[frame.reading] > 0
    return np.asarray(shared & busy & ~varied)


def _nobodys(frame: Frame, owned: "Mask") -> "Mask":
    labelled = frame.given("pod")
    active = np.zeros(len(frame), dtype=bool)
    for name in ("gpu_active", "gr_active", "sm_active"):
        active |= frame.number(name) >= _TOUCHED
    return labelled & active & ~owned


def _mig(frame: Frame, _owned: "Mask") -> "Mask":
    sliced = np.array([mig.SLICE in name for name in frame.devices] or [False])[frame.device]
    return np.asarray(sliced & frame.given("gpu_active"))


def _mig_unmeasured(frame: Frame, _owned: "Mask") -> "Mask":
    hit = np.array([mig.SLICE in name for name in frame.devices] or [False])[frame.device]
    for name in _PROFILED:
        hit &= np.isnan(frame.number(name))
    return np.asarray(hit)


def _anew(frame: Frame) -> "Mask":
    """By reading: the counter went back to no more than can have been drawn since, as when a machine was started again."""
    limit = np.where(np.isnan(frame.limit), _UNMARKED, frame.limit)[frame.first] * _POWER_FACTOR
    joules = frame.counter[frame.first] / 1000
    return np.asarray((frame.counted < 0) & (joules <= limit * (frame.unchanged + _slack(frame))))


def _restarted(frame: Frame, _owned: "Mask") -> "Mask":
    return _anew(frame)[frame.reading]


def _backwards(frame: Frame, _owned: "Mask") -> "Mask":
    return np.asarray((frame.counted < 0) & ~_anew(frame))[frame.reading]


def _slack(frame: Frame) -> "Floats":
    """By reading: seconds by which growth that is seen can be older than the reading: the longest between two moves of its
    device's counter.
    """
    device = frame.device[frame.first]
    longest = np.zeros(len(frame.devices))
    np.maximum.at(longest, device, frame.unchanged)
    return np.minimum(longest, _SLOWEST)[device]


def _impossible_power(frame: Frame, _owned: "Mask") -> "Mask":
    limit = frame.limit * _POWER_FACTOR
    grown = frame.counted > limit[frame.first] * (frame.unchanged + _slack(frame))
    group, usable, total = _windows(frame, frame.counted >= 0)
    most = limit[frame.first] * (total(frame.seconds)[group] + _slack(frame))
    grown |= usable & (total(np.ones(len(group)))[group] >= _LEAST) & (total(frame.counted)[group] > most)
    return (frame.drawn > limit) | np.asarray(grown)[frame.reading]


def _impossible_traffic(frame: Frame, _owned: "Mask") -> "Mask":
    return np.asarray(np.any([frame.number(name) > buses.MOST * frame.carried(name) for name in RATES], axis=0))


def _windows(frame: Frame, wanted: "Mask") -> "tuple[Ints, Mask, Callable[[Floats], Floats]]":
    """(window of each reading, which of those wanted stand for any time, their sum by window)."""
    usable = wanted & (frame.seconds > 0)
    window = frame.at[frame.first] // (_WINDOW * SECOND)
    new = np.ones(len(window), dtype=bool)
    new[1:] = ~frame.before[1:] | (window[1:] != window[:-1])
    group = np.cumsum(new) - 1
    size = int(group[-1]) + 1 if len(group) else 0

    def total(values: "Floats") -> "Floats":
        return np.asarray(np.bincount(group, weights=np.where(usable, values, 0.0), minlength=size), dtype=np.float64)

    return group, usable, total


def _a_hundredth(frame: Frame, _owned: "Mask") -> "Mask":
    """Utilisation that stays below 1% of a device whose engine is at work, as of an exporter that gives a ratio for percent."""
    shown, engine = frame.number("gpu_active")[frame.first], frame.number("gr_active")[frame.first]
    engine = np.where(np.isnan(engine), frame.number("sm_active")[frame.first], engine)
    group, usable, total = _windows(frame, np.isfinite(shown) & np.isfinite(engine))
    count = total(np.ones(len(group)))
    seconds = np.maximum(total(frame.seconds), 1e-9)
    works = total(engine * frame.seconds) / seconds >= _WORKS
    odd = works & (count >= _LEAST) & (total((shown > _RATIO).astype(np.float64)) == 0)
    return np.asarray((odd[group] & usable)[frame.reading])


def _energy_at_odds(frame: Frame, _owned: "Mask") -> "Mask":
    """Mean power against the counter's growth, over windows: sampled power scatters around the mean, so the allowance has
    four standard errors of it beside a quarter of the value, and what one move of the counter can be off at the edges.
    """
    shown = frame.drawn[frame.first]
    group, usable, total = _windows(frame, np.isfinite(shown) & (frame.counted >= 0))
    power = np.where(usable, shown, 0.0)
    count = total(np.ones(len(power)))
    seconds = np.maximum(total(frame.seconds), 1e-9)
    mean = total(power * frame.seconds) / seconds
    spread = np.sqrt(np.maximum(total(power**2 * frame.seconds) / seconds - mean**2, 0.0))
    counted = total(np.nan_to_num(frame.counted)) / seconds
    most = np.maximum(mean, counted)[group]
    # What an exporter repeats until it reads its device again is one observation, however often it is scraped.
    anew = np.ones(len(shown), dtype=bool)
    anew[1:] = (shown[1:] != shown[:-1]) | ~frame.before[1:]
    seen = total(anew.astype(float))
    errors = (4 * spread / np.sqrt(np.maximum(seen - 1, 1)))[group]
    allowed = 0.25 * most + 25.0 + errors + most * _slack(frame) / seconds[group]
    # A device that never shows another power has been seen as often as it was read.
    odd = ((seen >= _LEAST) | ((seen <= 1) & (count >= _LEAST)))[group] & (np.abs(mean - counted)[group] > allowed)
    return np.asarray((odd & usable)[frame.reading])


def _stands_still(frame: Frame, _owned: "Mask") -> "Mask":
    """A counter that stands while power is drawn, or a busy device whose every sensor repeats itself."""
    first = frame.first
    power, energy = frame.drawn[first], frame.counter[first]
    active = frame.number("gpu_active")[first]
    stuck = (frame.counted == 0) & (power > 1)
    same = frame.before & (active > 0) & np.isfinite(power) & np.isnan(energy)
    for name in (*RATIOS, "memory_used", "power", "temperature", "sm_clock"):
        value = frame.number(name)[first]
        same[1:] &= (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))
    long = _run(frame, stuck, _STUCK) | _run(frame, same, _STILL)
    return np.asarray(long)[frame.reading]


def _run(frame: Frame, hit: "Mask", least: float) -> "Mask":
    """Those of `hit`, by reading, that lie in an unbroken run of at least so many seconds."""
    edge = np.ones(len(hit), dtype=bool)
    edge[1:] = (hit[1:] != hit[:-1]) | ~frame.before[1:]
    group = np.cumsum(edge) - 1
    if not len(group):
        return hit
    length = np.bincount(group, weights=np.where(hit, frame.seconds, 0.0))
    return np.asarray(hit & (length[group] >= least))


def _clock(frame: Frame, _owned: "Mask") -> "Mask":
    live = frame.given("received")
    hit = live & (frame.at > frame.received + _AHEAD * SECOND)
    order = np.lexsort((frame.received, frame.device))
    device, at, received = frame.device[order], frame.at[order], frame.received[order]
    back = np.zeros(len(at), dtype=bool)
    back[1:] = (device[1:] == device[:-1]) & (received[1:] > received[:-1]) & (at[1:] < at[:-1] - SECOND)
    hit[order[back]] |= live[order[back]]
    return hit


def _above_engine(frame: Frame, _owned: "Mask") -> "Mask":
    engine, sm, tensor = frame.number("gr_active"), frame.number("sm_active"), frame.number("tensor_active")
    return (sm > engine + _TOLERANCE) | (tensor > sm + _TOLERANCE)


def _conflicting(frame: Frame, _owned: "Mask") -> "Mask":
    return frame.conflicting


def _unknown(frame: Frame, _owned: "Mask") -> "Mask":
    names, code = frame.models
    errors, error = frame.text("error")
    readable = ~np.array([bool(one) for one in errors] or [False])[error]
    return np.asarray(_is_gpu(frame) & np.array([not name for name in names] or [False])[code] & readable)


def _is_gpu(frame: Frame) -> "Mask":
    return np.array([name.startswith(GPU) for name in frame.devices] or [False])[frame.device]


CHECKS: tuple[Check, ...] = (
    Check(
        name="lost",
        about="The device does not answer, or not with numbers.",
        threshold="any error of the driver or the collector",
        shown=("error",),
        find=_lost,
    ),
    Check(
        name="conflicting",
        about="One device and instant were delivered with different values.",
        threshold="any difference",
        shown=("gpu_active", "sm_active", "power", "energy"),
        find=_conflicting,
    ),
    Check(
        name="out-of-range",
        about="A value that cannot be: a ratio above 1, below 0 or no number, more memory in use than there is.",
        threshold="ratios 0 to 1.01, others at least 0, memory at most 101% and 1.2 times the data sheet's, temperature "
        "within 200 °C of 0",
        shown=(*RATIOS, "memory_used", "memory_total", "power", "temperature", "throttle", *RATES),
        find=_out_of_range,
    ),
    Check(
        name="clock",
        about="The source's clock is ahead of ours, or went back while readings went on.",
        threshold="60 s ahead, 1 s back",
        shown=("at", "received"),
        find=_clock,
    ),
    Check(
        name="profiling-off",
        about="The device is said to be busy while every profiling field is 0: the fields are not measured.",
        threshold="gpu_active at least 0.9, gr_active or sm_active given, and 0 in all of them and dram_active",
        shown=("gpu_active", *_PROFILED),
        find=_profiling_off,
    ),
    Check(
        name="shared-value",
        about="Every pod that shares the device has the device's own figures: none of them is the pod's.",
        threshold="equal in all ratios, and not 0",
        shown=("part", "gpu_active", "sm_active"),
        find=_same_for_all,
    ),
    Check(
        name="no-pod",
        about="The exporter names pods, the device works, and it is in no pod or job that is known.",
        threshold="gpu_active, gr_active or sm_active at least 0.05",
        shown=("gpu_active", "gr_active", "sm_active"),
        find=_nobodys,
    ),
    Check(
        name="mig-utilisation",
        about="A MIG instance has no utilisation: one that is given is that of the device, or of nothing.",
        threshold="any gpu_active",
        shown=("gpu_active", *_PROFILED),
        find=_mig,
    ),
    Check(
        name="above-engine",
        about="More SMs, or tensor pipes, are active than the engine, or SMs, that they are part of.",
        threshold="by more than 0.05",
        shown=("gr_active", "sm_active", "tensor_active"),
        find=_above_engine,
    ),
    Check(
        name="backwards",
        about="The energy counter went back, and not to where it began: it is another device, or an invention.",
        threshold="a decrease to more than 1.2 times what the device can have drawn since",
        shown=("energy", "gpu_energy"),
        find=_backwards,
    ),
    Check(
        name="impossible-power",
        about="More power, or energy in the time, than the device can draw.",
        threshold="1.2 times the data sheet's power, else the device's own limit; of energy, with its counter's longest step",
        shown=("power", "power_limit", "energy", "gpu_power", "gpu_energy"),
        find=_impossible_power,
    ),
    Check(
        name="impossible-traffic",
        about="More went over the links than they carry: bytes that were taken for something else, or a counter's mistake.",
        threshold="1.1 times NVLink's bandwidth by the data sheet, or PCIe's by its generation, both directions together",
        shown=RATES,
        find=_impossible_traffic,
    ),
    Check(
        name="energy-at-odds",
        about="The energy counter grows at another rate than the power that is shown.",
        threshold="over 10 minutes: 25% and 25 W and 4 standard errors and the counter's longest step",
        shown=("power", "energy", "gpu_power", "gpu_energy"),
        find=_energy_at_odds,
    ),
    Check(
        name="stale",
        about="The readings repeat themselves: the exporter serves old values.",
        threshold="energy unchanged for 150 s while power is drawn; without a counter, all of a busy device for 300 s",
        shown=("energy", "power", "gpu_active"),
        find=_stands_still,
    ),
    Check(
        name="utilisation-at-odds",
        about="The engine works and utilisation stays near 0: it was given as a ratio where percent are due.",
        threshold="over 10 minutes: gpu_active never above 0.011, gr_active (else sm_active) at least 0.5",
        shown=("gpu_active", "gr_active", "sm_active"),
        find=_a_hundredth,
    ),
    Check(
        name="restarted",
        about="The energy counter began anew: the driver was loaded again. What was drawn meanwhile is power times time.",
        threshold="a decrease to no more than 1.2 times what the device can have drawn since",
        shown=("energy", "gpu_energy"),
        find=_restarted,
        suspect=False,
    ),
    Check(
        name="mig-unmeasured",
        about="Nothing says what a MIG instance did: it has no utilisation, and profiling fields are missing.",
        threshold="none of gr_active, sm_active, dram_active",
        shown=_PROFILED,
        find=_mig_unmeasured,
        suspect=False,
    ),
    Check(
        name="unknown-gpu",
        about="The catalogue does not know the product, so its power cannot be checked, nor an MFU be computed.",
        threshold="not in `gpus.json`",
        shown=("product",),
        find=_unknown,
        suspect=False,
    ),
)
