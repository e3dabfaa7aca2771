"""What scheduling decides on and what it decides: work, machines, quotas, the state of a queue, a decision and its reasons.

Frozen values without I/O and without a clock. Times are seconds on one axis that the caller chooses (the live queue: since
1970 in UTC; a study: since the trace began). GPUs are counted in thousandths (`milli`), so that shares of one GPU and
whole ones add up exactly.
"""

from math import inf, isfinite
from typing import Literal, Protocol

import msgspec

from macadam.errors import InvalidInput

WHOLE = 1000
EVERYBODY = "all"
EARLY = 1e-3
"""Seconds by which an instant may be missed and still counts: the difference of two instants since 1970 is exact to less than that."""

Order = Literal["fifo", "priority", "least-attained", "shortest", "gittins", "oracle"]
Backfill = Literal["none", "easy", "any"]
Preemption = Literal["never", "lower-priority", "order"]
Reclaim = Literal["never", "due", "lower-priority", "any"]
Reason = Literal[
    "impossible", "limit", "cohort", "gpu-hours", "money", "no-gpus", "fragmented", "behind", "reserved", "deferred"
]


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the scheduler sees it: a gang, which gets all its GPUs at once or none.

    tenant: the project. gpus: whole ones in all; milli: a part of one GPU, only with gpus 0. models: the catalogue's names
    that will do, () = any. nodes: over how many machines the GPUs are spread evenly, 0 = as they fit. cpu_milli and
    memory (bytes): of the whole gang. submitted: when. priority: higher goes first where the policy asks for it.
    preemptible: may be stopped and started again. deadline: when it should be done, 0 = none. time_limit: seconds after
    which it is stopped, 0 = none. checkpoint_every: seconds between its own saves, 0 = it saves when it is asked to stop, infinity = never.
    checkpoint_cost: seconds that each stop costs besides: to save, to start anew, to load. attained: seconds that it has run and that stand;
    reached: the most that it had run before a stop lost a part, 0 = no more than `attained`: it is known to take longer.
    preemptions: how often it was stopped. group: whose
    durations are alike (such as the entry point), '' = only tenant and GPUs. micros_per_gpu_hour: its price; before it is placed, that
    of the dearest GPUs that will do. grace: seconds that it may go on after it was asked to stop, for which money is kept. seconds: how
    long it really runs, known to studies only (0 = unknown); no policy but `oracle` reads it. due: when its tenant's own share would have started it (`promise.due_times`), infinity = not yet, None =
    not known: then it counts as due at once under a quota, and after `Policy.ageing` without quotas. markets: of `Node.market`, those that
    will do, each tried alone in this order before all of them together, () = any.
    Raises InvalidInput for what cannot be, such as times that are no numbers.
    """

    id: str
    tenant: str
    submitted: float
    gpus: int = 1
    milli: int = 0
    models: tuple[str, ...] = ()
    nodes: int = 0
    cpu_milli: int = 0
    memory: int = 0
    priority: int = 0
    preemptible: bool = True
    deadline: float = 0
    time_limit: float = 0
    checkpoint_every: float = 0
    checkpoint_cost: float = 0
    attained: float = 0
    reached: float = 0
    preemptions: int = 0
    group: str = ""
    micros_per_gpu_hour: int = 0
    grace: float = 0
    seconds: float = 0
    due: float | None = None
    markets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole, part = self.gpus > 0 and not self.milli, not self.gpus and 0 < self.milli < WHOLE
        if not (whole or part):
            raise InvalidInput(
                f"Work {self.id!r} asks for {self.gpus} GPUs and {self.milli} thousandths of one.",
                next_step="Ask for whole GPUs, or for 1 to 999 thousandths of one.",
            )
        seconds = (
            self.deadline,
            self.time_limit,
            self.checkpoint_cost,
            self.attained,
            self.reached,
            self.grace,
            self.seconds,
        )
        numbers = isfinite(self.submitted) and all(0 <= each < inf for each in seconds) and self.checkpoint_every >= 0
        if not numbers or self.due != self.due:
            raise InvalidInput(
                f"Work {self.id!r} was submitted at {self.submitted}, with {', '.join(map(str, seconds))} s to be kept.",
                next_step="Give instants and seconds that are numbers, 0 or more.",
            )
        if self.nodes and self.gpus % self.nodes:
            raise InvalidInput(
                f"Work {self.id!r} cannot spread {self.gpus} GPUs evenly over {self.nodes} machines.",
                next_step="Choose a number of machines that divides the GPUs.",
            )

    @property
    def demand(self) -> int:
        """Thousandths of GPUs."""
        return self.gpus * WHOLE or self.milli

    @property
    def tries(self) -> tuple[tuple[str, ...], ...]:
        """The markets to look at together, one try after the other."""
        alone = tuple((market,) for market in self.markets) if len(self.markets) > 1 else ()
        return (*alone, self.markets)

    def age(self, attained: float) -> float:
        """Seconds that it is known to last at least, where `attained` stand."""
        return max(attained, self.reached)

    def price(self, ran: float) -> float:
        """Seconds that a stop costs after a stretch of `ran` seconds: what it has not saved, and to save and start anew."""
        if self.checkpoint_every == inf:
            return ran + self.checkpoint_cost
        unsaved = ran % self.checkpoint_every if self.checkpoint_every else 0.0
        return (unsaved if self.checkpoint_every - unsaved > EARLY else 0.0) + self.checkpoint_cost

    def saves(self, ran: float) -> float:
        """After how many seconds of a stretch, later than `ran`, it next saves by itself; infinity: never."""
        every = self.checkpoint_every
        return ((ran + EARLY) // every + 1) * every if 0 < every < inf else inf


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a placement. devices: indexes of the node's GPUs, from 0. milli: thousandths of GPUs taken there in all: 1000 for
    each device, or less of a single one.
    """

    node: str
    milli: int
    devices: tuple[int, ...]


Placement = tuple[Slot, ...]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, or a pool of like GPUs where topology does not matter. model: of its GPUs, '' = not known. cpu_milli, memory
    (bytes): what jobs may use of it, 0 = not limited. market: where it was bought (`markets`), '' = that is not told apart.
    """

    name: str
    gpus: int
    model: str = ""
    cpu_milli: int = 0
    memory: int = 0
    zone: str = ""
    market: str = ""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """Work that has its GPUs. started: when this stretch began; `work.attained` is as of then."""

    work: Work
    placement: Placement
    started: float

    def attained(self, now: float) -> float:
        """Seconds it has run that stand, those of this stretch included."""
        return self.work.attained + self.ran(now)

    def ran(self, now: float) -> float:
        """Seconds of this stretch."""
        return max(0.0, now - self.started)

    def price(self, now: float) -> float:
        """Seconds that a stop costs now."""
        return self.work.price(self.ran(now))

    def stopped(self, now: float) -> Work:
        """As it waits after a stop. A stretch loses no more than itself, so that what stood before stands."""
        ran, reached = self.ran(now), self.attained(now)
        return msgspec.structs.replace(
            self.work,
            attained=reached - min(ran, self.work.price(ran)),
            reached=self.work.age(reached),
            preemptions=self.work.preemptions + (ran > 0),
        )


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may use, in the terms of Kueue's ClusterQueue.

    gpus: its own (nominalQuota). cohort: those it lends to and borrows from, '' = nobody. borrow: at most so many beyond its own
    (borrowingLimit), None = no limit. lend: at most so many of its own (lendingLimit), None = all that it does not use.
    gpu_hours, micros: what it may spend in the window that `State.spent` covers, None = no limit. weight: its part among borrowers.
    """

    tenant: str
    gpus: int
    cohort: str = EVERYBODY
    borrow: int | None = None
    lend: int | None = None
    gpu_hours: float | None = None
    micros: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        limits = {
            "gpus": self.gpus,
            "borrow": self.borrow,
            "lend": self.lend,
            "gpu_hours": self.gpu_hours,
            "micros": self.micros,
        }
        for name, value in limits.items():
            if value is not None and not value >= 0:
                raise InvalidInput(
                    f"The quota of {self.tenant!r} has {name} {value}.", next_step=f"Give a {name} of 0 or more."
                )
        if not 0 < self.weight < float("inf"):
            raise InvalidInput(
                f"The quota of {self.tenant!r} has weight {self.weight}.", next_step="Give a weight above 0."
            )


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has used before `now`, of stretches that have ended. gpu_seconds, micros: in its quota's window. decayed:
    GPU-seconds, each halved for every half-life that has passed since.
    """

    gpu_seconds: float = 0
    micros: int = 0
    decayed: float = 0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision may depend on besides the policy and the instant. quotas: none at all = no limits; a tenant without one
    beside others that have one borrows what is nobody's or idle. spent: by tenant.
    """

    nodes: tuple[Node, ...]
    waiting: tuple[Work, ...] = ()
    running: tuple[Running, ...] = ()
    quotas: tuple[Quota, ...] = ()
    spent: dict[str, Spent] = {}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How to decide.

    order: who goes first. backfill: what may pass the first that does not fit: nothing, what ends before the first can start (EASY),
    anything. preempt: who may be stopped for those before them in order: nobody, those of the same tenant with lower priority, any that rank
    behind. reclaim: when a tenant gets back what it lends: never, when its own share would have started the job (`promise`), at once
    from borrowers with lower priority, at once from any. patience: seconds by which jobs count as submitted
    later where it is found when they are due.
    ageing: seconds after which a job that nothing is promised counts as due where there are no quotas, and goes before all who borrow
    where there are: no starvation. half_life: seconds in
    which past use counts half in the fair share of borrowed GPUs, 0 = past use does not count. margin: a job is stopped for the
    order's sake only if its rank, less what the stop costs, is more than so many times that of who gets its GPUs. loss, trial: and only if the
    stop costs at most this part of what the stretch ran or, the first time that it is stopped, at most `trial` seconds; `priority` alone
    is an order for which any loss is taken.
    """

    order: Order = "gittins"
    backfill: Backfill = "any"
    preempt: Preemption = "order"
    reclaim: Reclaim = "due"
    patience: float = 0
    ageing: float = 14 * 86400
    half_life: float = 0
    margin: float = 2.0
    loss: float = 0.1
    trial: float = 60.0

    def __post_init__(self) -> None:
        seconds = self.patience, self.ageing, self.half_life, self.trial
        if not (all(each >= 0 for each in seconds) and self.margin >= 1 and 0 < self.loss <= 1):
            raise InvalidInput(
                f"The policy has patience {self.patience}, ageing {self.ageing}, half-life {self.half_life}, trial {self.trial}, "
                f"margin {self.margin} and loss {self.loss}.",
                next_step="Give seconds of 0 or more, a margin of 1 or more, and a part of up to 1 that may be lost.",
            )


class Places(Protocol):
    """The free GPUs of a cluster while a decision is being made: who places jobs keeps its own picture of them."""

    def free(self) -> int:
        """Thousandths of GPUs that nobody has, wherever they are."""
        ...

    def place(self, work: Work) -> Placement | None:
        """Takes the GPUs where this work would best go; None, and nothing taken, if it fits nowhere now."""
        ...

    def take(self, work: Work, placement: Placement) -> None:
        """Takes exactly these. Raises InvalidInput if they are not free, or no such GPUs are there."""
        ...

    def release(self, work: Work, placement: Placement) -> None:
        """Gives back what `place` or `take` took."""
        ...


class Estimates(Protocol):
    """What is expected of work's duration, from work that has FINISHED. All in seconds."""

    def index(self, work: Work, attained: float) -> float:
        """The order's key: the least expected GPU-seconds per finished job, given that it has run `attained` without finishing.
        Lower goes first.
        """
        ...

    def usual(self, work: Work) -> float:
        """How long such work runs at the median."""
        ...

    def remaining(self, work: Work, attained: float, quantile: float = 0.5) -> float:
        """How long it still runs at this quantile."""
        ...


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Give a waiting job these GPUs. borrowed: thousandths of them that are not its tenant's own."""

    id: str
    placement: Placement
    borrowed: int = 0


class Preempt(msgspec.Struct, frozen=True, kw_only=True):
    """Stop a running job at its checkpoint and let it wait again. by: the job that gets its GPUs, '' if nobody does."""

    id: str
    by: str
    reason: Literal["reclaimed", "due", "aged", "priority", "order", "gpu-hours", "money", "node-lost"]
    words: str


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job waits. words: for the person who asks; ahead: jobs that go first; needs: thousandths of GPUs that are missing."""

    reason: Reason
    words: str
    ahead: int = 0
    needs: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now. Preemptions first: starts may use their GPUs. waits: by the id of each job that goes on waiting.
    look_again: when to decide anew even if nothing happens, None = only when something does.
    """

    starts: tuple[Start, ...] = ()
    preemptions: tuple[Preempt, ...] = ()
    waits: dict[str, Wait] = {}
    look_again: float | None = None
