"""Operations on where the money went: divide a month, and show it to whom it belongs."""

from macadam.compute.waterfall import allocation, cascade
from macadam.compute.waterfall.allocation import Divided
from macadam.compute.waterfall.requests import (
    AllocateCosts,
    Allocation,
    BreakDown,
    Breakdown,
    ListAllocations,
    OwnerCost,
    ShowOwnerCost,
)
from macadam.errors import Conflict, NotFound
from macadam.operations import Transaction, operation

PLATFORM = "platform:home"
ALL = "*"
_COSTS = "/api/v1/projects/{project}/costs"


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
        parts=cascade.dearest(cascade.waterfalls(seen, request.by, models=facts.models), request.limit),
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
    owner = request.owner if ":" in request.owner else f"run:{request.owner}"
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
    )
