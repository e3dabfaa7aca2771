"""Workloads as SkyPilot tasks, for whoever runs them on many clouds: candidates in the order of their price.

Which offers there are and what they cost comes from the dated price catalogue; SkyPilot tries them in that order until one has capacity.
Fields and names: https://docs.skypilot.co/en/latest/reference/yaml-spec.html and its published catalogue (0.14, 2026-10).
"""

import shlex
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

import msgspec

from macadam.compute.catalogue import gpus, prices
from macadam.compute.catalogue.prices import Offer
from macadam.compute.jobs import validation
from macadam.compute.jobs.naming import dns_label
from macadam.compute.jobs.workload import CHECKPOINT, Workload
from macadam.errors import InvalidInput, NotFound

Task = dict[str, Any]

_GIB = 1 << 30
_MILLI = 1000
_MICROS = 1_000_000
_DISK = 256  # GB: SkyPilot's own default
_MOST = 20  # candidates in one task: each is tried in turn, and a long tail costs more than it finds
_LEAST_PRIORITY, _MOST_PRIORITY = -1000, 1000
_BUCKETS = ("s3://", "gs://", "r2://", "nebius://", "https://")
# The clouds of the price catalogue by SkyPilot's names; it has none for CoreWeave's and Crusoe's own APIs.
_CLOUDS = {"aws": "aws", "gcp": "gcp", "azure": "azure", "lambda": "lambda", "nebius": "nebius", "runpod": "runpod"}
_WITH_REGIONS = ("aws", "gcp", "azure")
# The catalogue's names by SkyPilot's: it tells memory and form apart only where clouds sell several.
_ACCELERATORS = {
    "a100-sxm-40gb": "A100",
    "a100-pcie-40gb": "A100",
    "a100-sxm-80gb": "A100-80GB",
    "a100-pcie-80gb": "A100-80GB",
    "a10-24gb": "A10",
    "a10g-24gb": "A10G",
    "b200-sxm-180gb": "B200",
    "gh200-96gb": "GH200",
    "h100-sxm-80gb": "H100",
    "h100-pcie-80gb": "H100",
    "h200-sxm-141gb": "H200",
    "l4-24gb": "L4",
    "l40-48gb": "L40",
    "l40s-48gb": "L40S",
    "p100-pcie-16gb": "P100",
    "t4-16gb": "T4",
    "v100-sxm-16gb": "V100",
    "v100-sxm-32gb": "V100-32GB",
}


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One place to run. hourly: what all GPUs of one member cost there, in micros of the currency; offer: what says so."""

    gpu: str
    cloud: str
    region: str
    spot: bool
    hourly: int
    offer: Offer


def candidates(
    workload: Workload,
    at: date,
    *,
    models: Sequence[str] = (),
    currency: str = "USD",
    own: Iterable[prices.Price] = (),
) -> tuple[Candidate, ...]:
    """Where this work could run, cheapest first. models: the catalogue's names that will do, none = the workload's own.

    A machine is rented whole: one with more GPUs than a member needs costs all of them. Spot only for work that may be
    interrupted. Raises NotFound if no cloud that SkyPilot reaches has a known price.
    """
    wanted = tuple(models) or ((workload.gpu,) if workload.gpu else ())
    if not (workload.gpus and wanted):
        raise InvalidInput(
            f"{workload.name} names no GPU.", next_step="Say which models will do; SkyPilot finds CPUs by itself."
        )
    if workload.mig:
        raise InvalidInput("Clouds rent no MIG slices through SkyPilot.", next_step="Ask for whole GPUs.")
    own = tuple(own)
    found: dict[tuple[str, str, str, bool], Candidate] = {}
    for model in wanted:
        for offer in prices.offers(model, at, own=own):
            made = _candidate(workload, offer)
            if made is None or offer.price.per_gpu_hour.currency != currency:
                continue
            key = (made.gpu, made.cloud, made.region, made.spot)
            if key not in found or made.hourly < found[key].hourly:
                found[key] = made
    if not found:
        raise NotFound(
            f"No price of {', '.join(wanted)} in {currency} is known on {at} for a cloud that SkyPilot reaches.",
            next_step="Look at `macadam cost prices`, or add your own.",
        )
    ordered = sorted(found.values(), key=lambda c: (c.hourly, c.spot, c.cloud, c.region, c.gpu))
    return tuple(ordered[:_MOST])


def task(workload: Workload, found: Sequence[Candidate], *, setup: str = "") -> Task:
    """The task, whose candidates are tried in the order given. setup: shell commands before it runs, such as installing packages.

    Raises InvalidInput for what SkyPilot cannot do.
    """
    shared: Task = {
        "cpus": f"{-(-workload.cpu_milli // _MILLI)}+",
        "memory": f"{-(-workload.memory // _GIB)}+",
        "disk_size": _DISK + -(-workload.scratch // _GIB),
        "image_id": f"docker:{workload.image}",
        "job_recovery": {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": workload.attempts - 1},
        "priority": min(_MOST_PRIORITY, max(_LEAST_PRIORITY, workload.priority)),
    }
    environment = dict(workload.environment)
    made: Task = {
        "name": dns_label(workload.name),
        "num_nodes": workload.members,
        "resources": {**shared, "ordered": [_resources(workload, one) for one in found]},
        "envs": environment,
        "secrets": dict.fromkeys(workload.secrets),
        "run": _run(workload),
    }
    if workload.checkpoint:
        if not workload.checkpoint.startswith(_BUCKETS):
            raise InvalidInput(
                f"The checkpoint {workload.checkpoint!r} is no bucket.",
                next_step="Name one that every cloud reaches: s3://… or gs://….",
            )
        made["file_mounts"] = {CHECKPOINT: {"source": workload.checkpoint, "mode": "MOUNT_CACHED"}}
        environment["MACADAM_CHECKPOINT"] = CHECKPOINT
    if setup:
        made["setup"] = setup
    validation.check_task(made)
    return made


def _candidate(workload: Workload, offer: Offer) -> Candidate | None:
    """None for offers that SkyPilot cannot take, that are paid in advance, or whose machines are too small."""
    price = offer.price
    spot = price.kind == "spot"
    usable = price.kind == "on-demand" or (spot and workload.spot)
    if price.provider not in _CLOUDS or price.gpu not in _ACCELERATORS or not usable or price.gpus < workload.gpus:
        return None
    return Candidate(
        gpu=price.gpu,
        cloud=_CLOUDS[price.provider],
        region=price.region if price.provider in _WITH_REGIONS else "",
        spot=spot,
        hourly=price.per_gpu_hour.micros * price.gpus,
        offer=offer,
    )


def _resources(workload: Workload, one: Candidate) -> Task:
    # A region is a hint of where that price holds; SkyPilot may not leave it for another candidate's price.
    infra = f"{one.cloud}/{one.region}" if one.region else one.cloud
    gpus.find(one.gpu)
    return {"infra": infra, "accelerators": {_ACCELERATORS[one.gpu]: workload.gpus}, "use_spot": one.spot}


def _run(workload: Workload) -> str:
    """The command with its rank, ended after its deadline: SkyPilot has no limit of time of its own."""
    command = shlex.join(workload.command)
    if workload.deadline:
        command = f"timeout --signal=TERM --kill-after={workload.grace} {workload.deadline} {command}"
    return f'export MACADAM_RANK="$SKYPILOT_NODE_RANK" MACADAM_WORLD="$SKYPILOT_NUM_NODES"\n{command}\n'


def describe(found: Sequence[Candidate]) -> list[dict[str, object]]:
    """The candidates for people: what each costs by the hour and who said so when."""
    return [
        {
            "gpu": one.gpu,
            "cloud": one.cloud,
            "region": one.region,
            "spot": one.spot,
            "hourly": f"{one.hourly // _MICROS}.{one.hourly % _MICROS:06d} {one.offer.price.per_gpu_hour.currency}",
            "dated": one.offer.price.dated.isoformat(),
            "stale": one.offer.stale,
            "source": one.offer.price.source,
        }
        for one in found
    ]
