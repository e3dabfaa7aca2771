"""Operations on where the money went: divide a month, and show it to whom it belongs."""

from datetime import timedelta
from typing import Any

from macadam import operations
from macadam.compute.telemetry import reading
from macadam.compute.telemetry.mig import SLICE
from macadam.compute.waterfall import allocation, cascade, energy, profiles
from macadam.compute.waterfall.allocation import Divided
from macadam.compute.waterfall.requests import (
    AllocateCosts,
    Allocation,
    BreakDown,
    Breakdown,
    ListAllocations,
    OwnerCost,
    OwnerEnergy,
    ShowOwnerCost,
    ShowOwnerEnergy,
)
from macadam.errors import Conflict, NotFound
from macadam.lazy import lazy
from macadam.operations import Context, Transaction, operation
from macadam.values import instant, require_aware

pc: Any = lazy("pyarrow.compute")

PLATFORM = "platform:home"
ALL = "*"
_COSTS = "/api/v1/projects/{project}/costs"
_LATELY = timedelta(days=31)
_COUNTED = (
    "the device's energy counter where it has one, else its power over time; what was not measured widens the bounds"
)
_OF_SLICES = (
    "attributed: a MIG slice has no counter, so it has its part of its device's by size and activity; " + _COUNTED
)


@operation(
    AllocateCosts,
    permission="costs:allocate",
    http="POST /api/v1/costs/allocations",
    cli="cost allocate",
    resource=PLATFORM,
    prepare=allocation.divide,
)
def allocate_costs(tx: Transaction, _request: AllocateCosts, divided: Divided) -> Allocation:
    """The leaf names the bills and the objects, so that every project's figure can be led back to them.

    Raises Conflict if bills or rules were changed meanwhile.
    """
    made = divided.allocation
    if what := allocation.changed(tx.sql, made):
        raise Conflict(f"While {made.month} was divided somebody changed {what}.", next_step="Divide it again.")
    allocation.keep(tx.sql, divided)
    tx.record(
        f"allocation:{made.id}",
        uses=[f"bill:{bill}" for bill in made.bills],
        month=made.month,
        rows=made.rows,
        facts=divided.facts,
        mapping=made.mapping,
        charges=made.charges,
        usage_rows=made.usage_rows,
        bill={money.currency: money.micros for money in made.bill},
        flags={flag.what: flag.count for flag in made.flags},
    )
    return made


@operation(
    ListAllocations,
    permission="bills:read",
    http="GET /api/v1/costs/allocations",
    cli="cost allocations",
    resource=PLATFORM,
)
def list_allocations(tx: Transaction, request: ListAllocations) -> tuple[Allocation, ...]:
    return allocation.listed(tx.sql, request.limit)


@operation(BreakDown, permission="costs:read", http=f"GET {_COSTS}/breakdown", cli="cost breakdown")
def break_down(tx: Transaction, request: BreakDown) -> Breakdown:
    """A project's readers get its own part; whose role is in all projects gets the whole. Raises NotFound."""
    month, _, _ = allocation.month_of(request.month, tx.now)
    made, spread, facts = allocation.newest(tx.sql, tx.ports.objects, month)
    everything = request.project == ALL
    seen = spread if everything else spread.of_project(request.project)
    return Breakdown(
        project=request.project,
        month=month,
        allocation=made.id,
        by=request.by,
        whole=cascade.waterfalls(seen),
        parts=cascade.dearest(
            cascade.waterfalls(seen, request.by, models=facts.models, served=facts.served), request.limit
        ),
        days=cascade.days(seen),
        uncharged=seen.uncharged[: request.limit],
        doubts=cascade.doubts(seen)[: request.limit] if everything else (),
        flags=seen.flags,
        outdated=allocation.changed(tx.sql, made),
    )


@operation(ShowOwnerCost, permission="costs:read", http=f"GET {_COSTS}/owners/{{owner}}", cli="cost run")
def show_owner_cost(tx: Transaction, request: ShowOwnerCost) -> OwnerCost:
    """Raises NotFound for an owner that had nothing in this project."""
    month, _, _ = allocation.month_of(request.month, tx.now)
    _, spread, facts = allocation.newest(tx.sql, tx.ports.objects, month)
    owner = _owner(request.owner)
    found = [one for one in cascade.waterfalls(spread.of_project(request.project), "owner") if one.key == owner]
    mine = [one for one in facts.energy if (one.project, one.owner) == (request.project, owner)]
    if not found and not mine:
        raise NotFound(
            f"{owner} had no machine of {request.project} in {month}.",
            next_step=f"See who had: macadam cost breakdown --project {request.project} --month {month} --by owner",
        )
    return OwnerCost(
        owner=owner,
        project=request.project,
        month=month,
        waterfalls=tuple(found),
        energy=mine[0] if mine else None,
        profiles=tuple(one for one in facts.profiles if (one.project, one.owner) == (request.project, owner)),
        grid=facts.grid,
    )


def _owner(named: str) -> str:
    """A name without a kind is a run's."""
    return named if ":" in named else f"run:{named}"


def _energy(context: Context, request: ShowOwnerEnergy) -> OwnerEnergy:
    """Raises NotFound for an owner whose GPUs were not seen in that time, NotAuthorised, InvalidInput."""
    operations.load("jobs")  # rooms above say what was assigned to whom
    granted = context.authorise(reading.PERMISSION, f"project:{request.project}")
    end = context.call.now if request.end is None else require_aware(request.end, "end")
    start = end - _LATELY if request.start is None else require_aware(request.start, "start")
    owner, settings = _owner(request.owner), context.ports.settings
    usage = reading.usage(context.ports, granted, start, end, project=request.project)
    own = usage.filter(pc.equal(usage.column("owner"), owner))
    pue, grid = allocation.pue_of(settings), allocation.grid_of(settings)
    found = energy.by_owner(own, pue=pue, grams_per_kwh=grid.grams_per_kwh)
    if not found:
        raise NotFound(
            f"No GPU of {owner} was seen between {instant(start)} and {instant(end)}.",
            next_step=f"See who was: macadam gpu usage --project {request.project} --by owner",
        )
    sliced = pc.any(pc.match_substring(own.column("device"), SLICE)).as_py()
    return OwnerEnergy(
        owner=owner,
        project=request.project,
        start=start,
        end=end,
        energy=found[0],
        grid=grid,
        pue=pue,
        profiles=profiles.by_owner(own),
        basis=_OF_SLICES if sliced else _COUNTED,
    )


@operation(
    ShowOwnerEnergy,
    permission="costs:read",
    http=f"GET {_COSTS}/owners/{{owner}}/energy",
    cli="cost energy",
    prepare=_energy,
)
def show_owner_energy(_tx: Transaction, _request: ShowOwnerEnergy, found: OwnerEnergy) -> OwnerEnergy:
    return found
