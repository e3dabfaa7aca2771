"""The study of packing: how many GPUs of a real cluster stay unallocated under each placement policy.

Reads files of the shape of Alibaba's cluster-trace-gpu-v2023 (nodes: sn, cpu_milli, memory_mib, gpu, model; pods: name, cpu_milli,
memory_mib, num_gpu, gpu_milli, gpu_spec) and lets pods arrive in random order until the GPUs demanded reach a multiple of the
capacity, as in FGD's experiments (USENIX ATC 2023, section 6). Nothing leaves. It decides with `scheduling.placement`, as the queue does.
"""

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from macadam.compute.catalogue import gpus
from macadam.compute.scheduling.cluster import Assignment, Cluster, Demand, Machine
from macadam.compute.scheduling.fragmentation import typical
from macadam.compute.scheduling.placement import Name, Placer, Policy
from macadam.compute.scheduling.types import WHOLE
from macadam.errors import InvalidInput, SourceInvalid, TooLarge
from macadam.lazy import lazy
from macadam.operations import Progress

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

NODES = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
PODS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec")
_LARGEST = 256 * 2**20  # bytes: some two million rows
_POINTS = 100  # of the curve of what is allocated
_SEEN = 0.1  # percent of the capacity: less cannot be seen in a plot
_MOST = 2**50  # of thousandths of a core or MiB: exact when added up in 64 bits
_MOST_GPUS = 256  # of one node: the state of all is kept as wide as the widest
_T = TypeVar("_T")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One run. gpus: capacity; demanded, allocated, unallocated: GPUs. placed, dropped: pods. lacking: why pods were dropped, by
    what the most nodes lacked. curve: (GPUs demanded, GPUs allocated), each as a part of the capacity. seconds: wall clock.
    """

    policy: str
    seed: int
    gpus: int
    demanded: float
    allocated: float
    unallocated: float
    placed: int
    dropped: int
    lacking: dict[str, int]
    curve: tuple[tuple[float, float], ...]
    seconds: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A policy over all seeds. unallocated: mean GPUs; deviation: standard deviation between seeds (0 for a single one)."""

    policy: str
    seeds: int
    unallocated: float
    deviation: float
    allocated_part: float
    dropped: float
    seconds: float


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked and what came out. demand: GPUs demanded as a multiple of the capacity."""

    nodes: int
    pods: int
    gpus: int
    demand: float
    summaries: tuple[Summary, ...]
    outcomes: tuple[Outcome, ...]


def read_nodes(path: Path) -> tuple[Machine, ...]:
    """Raises SourceInvalid with the line that is wrong or the name that two nodes have, TooLarge."""
    found = tuple(_rows(path, NODES, _machine))
    twice = [name for name, count in Counter(node.name for node in found).items() if count > 1]
    if twice:
        raise SourceInvalid(
            f"{path} has more than one node {twice[0]!r}.",
            next_step="Give each node a line and a name (sn) of its own.",
        )
    return found


def read_pods(path: Path) -> tuple[Demand, ...]:
    """Raises SourceInvalid with the line that is wrong, TooLarge. gpu_spec: models that will do, with | between them."""
    return tuple(_rows(path, PODS, _demand))


def capability(machines: Sequence[Machine]) -> dict[str, float]:
    """Dense half-precision FLOP/s of the models that the catalogue knows. Of the others nothing is said."""
    known = {machine.model: gpus.recognise(machine.model) for machine in machines if machine.gpus}
    found = {model: gpus.find(name).peak for model, name in known.items() if name}
    return {model: peak["fp16"] for model, peak in found.items() if "fp16" in peak}


def arrivals(pods: Sequence[Demand], milli: float, seed: int) -> Iterator[Demand]:
    """All pods in an order drawn by the seed, then pods drawn with replacement, until `milli` thousandths of a GPU are demanded.

    Raises InvalidInput if no pod asks for a GPU, so that it would never end.
    """
    if not any(pod.total_milli for pod in pods):
        raise InvalidInput("No pod asks for a GPU.", next_step="Give a file of pods with num_gpu above 0.")
    draw = np.random.default_rng(seed)
    order = iter(draw.permutation(len(pods)).tolist())
    demanded = 0
    while demanded < milli:
        index = next(order, -1)
        pod = pods[index if index >= 0 else int(draw.integers(len(pods)))]
        demanded += pod.total_milli
        yield pod


def run(machines: Sequence[Machine], pods: Sequence[Demand], policy: Policy, *, demand: float, seed: int) -> Outcome:
    """One order of arrivals under one policy."""
    begun = time.perf_counter()
    cluster = Cluster(machines)
    placer = Placer(cluster, policy)
    capacity = cluster.free_milli()
    demanded = taken = placed = 0
    dropped: Counter[str] = Counter()
    curve = [(0.0, 0.0)]
    for pod in arrivals(pods, demand * capacity, seed):
        found = placer.place(pod)
        demanded += pod.total_milli
        if isinstance(found, Assignment):
            cluster.take(pod, found)
            taken += pod.total_milli
            placed += 1
        else:
            dropped[max(found.lacking, key=lambda name: found.lacking[name])] += 1
        if demanded >= capacity * demand * len(curve) / _POINTS:
            curve.append((demanded / capacity, taken / capacity))
    return Outcome(
        policy=policy.name,
        seed=seed,
        gpus=capacity // WHOLE,
        demanded=demanded / WHOLE,
        allocated=taken / WHOLE,
        unallocated=(capacity - taken) / WHOLE,
        placed=placed,
        dropped=dropped.total(),
        lacking=dict(dropped),
        curve=tuple(curve),
        seconds=time.perf_counter() - begun,
    )


def study(
    machines: Sequence[Machine],
    pods: Sequence[Demand],
    names: Sequence[Name],
    *,
    demand: float = 1.0,
    seeds: int = 10,
    capability: Mapping[str, float] | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> Study:
    """Every policy over the same orders of arrivals. Typical work is that of the whole file of pods, which says what arrives but not
    in which order. capability: see placement.Policy. Raises InvalidInput.
    """
    if not machines or not pods or not names or seeds < 1 or not 0 < demand <= _POINTS:
        raise InvalidInput(
            f"There are {len(machines)} nodes, {len(pods)} pods, {seeds} seeds and a demand of {demand}.",
            next_step=f"Give files with rows, one seed or more, and a demand above 0, at most {_POINTS}, such as 1.0.",
        )
    if not sum(machine.gpus for machine in machines):
        raise InvalidInput("The nodes have no GPU.", next_step="Give a file of nodes with gpu above 0.")
    work = typical(pods)
    outcomes: list[Outcome] = []
    for name in names:
        for seed in range(seeds):
            policy = Policy(name=name, seed=seed, typical=work, capability=dict(capability or {}))
            outcomes.append(run(machines, pods, policy, demand=demand, seed=seed))
            progress(name, seed + 1, seeds)
    return Study(
        nodes=len(machines),
        pods=len(pods),
        gpus=outcomes[0].gpus,
        demand=demand,
        summaries=tuple(_summary([one for one in outcomes if one.policy == name]) for name in names),
        outcomes=tuple(outcomes),
    )


def mean_curves(found: Study) -> dict[str, list[tuple[float, float]]]:
    """For a plot: policy → (GPUs demanded, GPUs unallocated although demanded), both in percent of the capacity, the mean of all
    seeds; from where the first policy leaves any.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for summary in found.summaries:
        runs = [one.curve for one in found.outcomes if one.policy == summary.policy]
        curves[summary.policy] = [_lost(at) for at in zip(*runs, strict=False)]
    first = min((x for curve in curves.values() for x, lost in curve if lost > _SEEN), default=0.0)
    return {policy: [(x, lost) for x, lost in curve if x >= first] or curve for policy, curve in curves.items()}


def _lost(at: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """One point of the mean of several curves of (part demanded, part allocated)."""
    demanded, allocated = (100 * sum(values) / len(at) for values in zip(*at, strict=True))
    return demanded, min(demanded, 100.0) - allocated


def _summary(outcomes: Sequence[Outcome]) -> Summary:
    left = np.array([one.unallocated for one in outcomes])
    return Summary(
        policy=outcomes[0].policy,
        seeds=len(outcomes),
        unallocated=float(left.mean()),
        deviation=float(left.std(ddof=1)) if len(left) > 1 else 0.0,
        allocated_part=1 - float(left.mean()) / outcomes[0].gpus,
        dropped=sum(one.dropped for one in outcomes) / len(outcomes),
        seconds=sum(one.seconds for one in outcomes),
    )


def _rows(path: Path, columns: Sequence[str], build: Callable[[Mapping[str, str]], _T]) -> Iterator[_T]:
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise TooLarge(f"{path} has {size} bytes.", next_step=f"Give a file of at most {_LARGEST} bytes.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise SourceInvalid(
                    f"{path} has no column {', '.join(missing)}.", next_step=f"Its header needs {','.join(columns)}."
                )
            for row in reader:
                yield _row(path, reader.line_num, row, build)
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceInvalid(f"{path} cannot be read: {error}.", next_step="Give a CSV file in UTF-8.") from error


def _row(path: Path, line: int, row: Mapping[str, str], build: Callable[[Mapping[str, str]], _T]) -> _T:
    if None in row.values():
        raise SourceInvalid(f"{path}, line {line}, has too few columns.", next_step="Correct that line.")
    try:
        return build(row)
    except InvalidInput as error:
        raise SourceInvalid(f"{path}, line {line}: {error.what}", next_step=error.next_step) from error


def _machine(row: Mapping[str, str]) -> Machine:
    return Machine(
        name=row["sn"],
        cpu_milli=_whole(row, "cpu_milli"),
        memory_mib=_whole(row, "memory_mib"),
        gpus=_whole(row, "gpu", _MOST_GPUS),
        model=row["model"] or "",
    )


def _demand(row: Mapping[str, str]) -> Demand:
    gpus = _whole(row, "num_gpu")
    return Demand(
        cpu_milli=_whole(row, "cpu_milli"),
        memory_mib=_whole(row, "memory_mib"),
        gpus=gpus,
        gpu_milli=_whole(row, "gpu_milli") if gpus else WHOLE,
        models=tuple(sorted(set((row["gpu_spec"] or "").split("|")) - {""})),
    )


def _whole(row: Mapping[str, str], column: str, most: int = _MOST) -> int:
    """Raises InvalidInput, naming the column."""
    said = row[column]
    try:
        found = int(said)
    except (TypeError, ValueError):
        found = -1
    if not 0 <= found <= most:
        raise InvalidInput(
            f"{column} is {said or 'missing'}.", next_step=f"Give a whole number of 0 to {most}: correct the line."
        )
    return found
