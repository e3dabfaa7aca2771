"""What the platform's own operations cost: gateways' work added to what the dispatcher measures, and both by stage."""

import os

from macadam.compute.waterfall import metering, stages
from macadam.compute.waterfall.requests import RecordWork, ShowStages, Stages, WorkRecorded
from macadam.compute.waterfall.stages import Measured, Price
from macadam.operations import Transaction, operation
from macadam.settings import Settings
from macadam.values import Money

_COSTS = "/api/v1/projects/{project}/costs"
_LEFT_OUT = "storage, network, idle time between calls, and people"
_NOT_ITS = "what the platform does for no project (`macadam cost stages --project '*'` shows it), "


def core_price(settings: Settings) -> Price:
    """What a core-hour of this machine costs by its settings, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Price(
        core_hour=Money(micros=settings.prices.cpu_hour_micros, currency=settings.prices.currency),
        cores=cores,
        source="MACADAM_PRICE_CPU_HOUR",
    )


@operation(RecordWork, permission="costs:meter", http=f"POST {_COSTS}/work", cli="cost meter")
def record_work(tx: Transaction, request: RecordWork) -> WorkRecorded:
    """Kept beside what operations took, as the stage `serve`."""
    done = Measured(
        project=request.project,
        operation=stages.GATEWAY,
        subject=request.subject,
        day=tx.now.date(),
        calls=request.calls,
        wall=request.wall,
        cpu=request.cpu,
    )
    metering.keep(tx.sql, [done])
    cost = stages.priced(done.wall, done.cpu, core_price(tx.ports.settings))
    tx.record(
        f"work:{tx.now.date().isoformat()}",
        work_for=request.subject,
        calls=request.calls,
        seconds=request.wall,
        cpu_seconds=request.cpu,
        cost_micros=cost.value.micros,
        currency=cost.value.currency,
    )
    return WorkRecorded(
        project=request.project,
        subject=request.subject,
        calls=request.calls,
        wall=request.wall,
        cpu=request.cpu,
        cost=cost,
    )


@operation(ShowStages, permission="costs:read", http=f"GET {_COSTS}/stages", cli="cost stages")
def show_stages(tx: Transaction, request: ShowStages) -> Stages:
    """What was measured up to a few seconds ago."""
    price = core_price(tx.ports.settings)
    measured = metering.measured(tx.sql, request.project, first=request.first, last=request.last)
    found = stages.by_stage(measured, price)
    return Stages(
        project=request.project,
        first=request.first,
        last=request.last,
        stages=found,
        total=stages.total((one.cost for one in found), price.core_hour.currency),
        price=price,
        left_out=_LEFT_OUT if request.project == metering.EVERYTHING else _NOT_ITS + _LEFT_OUT,
    )
