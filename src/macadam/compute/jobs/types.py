"""What the jobs room is asked and what it answers: jobs, their attempts, why they wait, quotas, cohorts.

Frozen values without I/O. A job is what somebody wants done; an attempt is one time that it runs. GPUs are counted in
thousandths (`milli`), processors in thousandths of a core, memory and disk in bytes, times in UTC, durations in seconds.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from macadam.compute.catalogue.tariff import GpuPrice
from macadam.errors import InvalidInput
from macadam.operations import Request
from macadam.values import Money, Name

WHOLE = 1000
_HOUR_MS = 3_600_000
GIB = 1 << 30
DAY = 86400.0

Text = Annotated[str, msgspec.Meta(max_length=200)]
Variable = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}\Z", description="of the environment")]
Word = Annotated[str, msgspec.Meta(max_length=4096)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]
JobId = Annotated[
    str, msgspec.Meta(pattern=r"^(job:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", description="id or job:id")
]
Image = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/@-]{0,254})?\Z")]
SourceText = Annotated[str, msgspec.Meta(max_length=4096)]

State = Literal["waiting", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping")
Wish = Literal["", "cancel", "preempt", "node", "money", "move"]
"""Why an attempt was asked to stop: its owner, another job, its machine goes away, its budget is spent, it goes on in another market."""
Ending = Literal[
    "succeeded",
    "failed",
    "killed",
    "lost",
    "preempted",
    "cancelled",
    "time limit",
    "memory",
    "refused",
    "node",
    "money",
    "moved",
]
Window = Literal["day", "week", "month"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all answers of this room."""


# --- what a job asks for


class Resources(Value, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What each attempt gets, whole or not at all.

    gpus: whole ones in all; milli: a part of one GPU, in thousandths, instead of whole ones. models: the catalogue's names that
    will do, none = any. nodes: over how many machines the GPUs are spread evenly; 0 = as they fit. There is one process on
    each machine. cpus: cores in all, 0.05 or more; memory, disk: bytes in all (disk: 0 = no limit).
    """

    gpus: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    milli: Annotated[int, msgspec.Meta(ge=0, lt=WHOLE)] = 0
    models: Annotated[tuple[Text, ...], msgspec.Meta(max_length=50)] = ()
    nodes: Annotated[int, msgspec.Meta(ge=0, le=512)] = 0
    cpus: Annotated[float, msgspec.Meta(ge=0.05, le=100_000)] = 1.0
    memory: Annotated[int, msgspec.Meta(ge=16 << 20, le=1 << 50)] = GIB
    disk: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0

    def __post_init__(self) -> None:
        if self.gpus and self.milli:
            raise InvalidInput(
                f"{self.gpus} GPUs and {self.milli} thousandths of one cannot be asked for together.",
                next_step="Ask for whole GPUs, or for a part of one.",
            )
        if self.nodes and (not self.gpus or self.gpus % self.nodes):
            raise InvalidInput(
                f"{self.gpus} GPUs cannot be spread evenly over {self.nodes} machines.",
                next_step="Choose a number of machines that divides the GPUs.",
            )

    @property
    def demand(self) -> int:
        """Thousandths of GPUs."""
        return self.gpus * WHOLE or self.milli

    @property
    def cpu_milli(self) -> int:
        return round(self.cpus * WHOLE)


class Spec(Value, frozen=True, kw_only=True):
    """What was submitted, as it was: see `SubmitJob`. bundle: digest of the working files, '' for none."""

    name: str
    command: tuple[str, ...]
    resources: Resources
    environment: dict[str, str] = {}
    requirements: str = ""
    image: str = ""
    bundle: str = ""
    group: str = ""
    deadline: datetime | None = None
    time_limit: float = 0
    preemptible: bool = True
    checkpoint: bool = False
    checkpoint_every: float = 0
    signal: int = 15
    grace: float = 30
    max_restarts: int = 0
    restart_codes: tuple[int, ...] = (75,)

    @property
    def likeness(self) -> str:
        """Whose durations are alike: its group, else its name, else what it runs."""
        return self.group or self.name or " ".join(self.command[:3])[:200]


class Job(Value, frozen=True, kw_only=True):
    """One job. attempt: the number of the newest one, 0 = none yet. restarts: attempts that died and were tried again;
    preemptions: attempts that were stopped for somebody else. attained: seconds that attempts have run, all together where it keeps a checkpoint,
    else the longest of them, as each begins anew: at its end, how long it takes. spent: what
    they have cost so far, by what they held, None if no price is known. ending: how the last attempt ended; message: more about it. ready: not started before.
    wish: why it is asked to stop; grace: seconds, if its canceller gave others than its own.
    """

    ref: str
    id: str
    project: str
    state: State
    spec: Spec
    priority: int
    author: str
    submitted: datetime
    attempt: int = 0
    restarts: int = 0
    preemptions: int = 0
    attained: float = 0
    spent: Money | None = Money(micros=0)
    ready: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None
    ending: Ending | None = None
    message: str = ""
    wish: Wish = ""
    grace: float = -1

    def __post_init__(self) -> None:
        if (self.state in ENDED) != (self.ended is not None):
            raise InvalidInput(f"{self.ref} is {self.state} and ended at {self.ended}.", next_step="Report it.")

    @property
    def attempt_id(self) -> str:
        return f"{self.id}.{self.attempt}"

    @property
    def standing(self) -> float:
        """Seconds of work that the next attempt goes on from."""
        return self.attained if self.spec.checkpoint else 0.0


class Place(Value, frozen=True, kw_only=True):
    """What one member has on one node. devices: by id, in thousandths; indexes: the same GPUs as the node counts them. market: where the
    machine was bought (`scheduling.markets`), '' = before that was written down.
    """

    node: str
    devices: dict[str, int]
    indexes: tuple[int, ...]
    milli: int
    cpus: int
    memory: int
    disk: int = 0
    market: str = ""


class Rate(Value, frozen=True, kw_only=True):
    """What an hour of all that an attempt holds costs, used or not. prices: of its GPUs, in `currency`, as they were in force when it
    started. nanos: thousandths of millionths of the currency, exact; own: what of them no provider's bill will show.
    """

    nanos: int
    own: int
    currency: str
    prices: tuple[GpuPrice, ...] = ()

    def cost(self, seconds: float) -> Money:
        """Of so long, rounded up once."""
        return self._of(self.nanos, seconds)

    def own_cost(self, seconds: float) -> Money:
        """The part of it that is on no bill: never more than all of it."""
        return self._of(self.own, seconds)

    def _of(self, nanos: int, seconds: float) -> Money:
        return Money(micros=-(-nanos * round(seconds * 1000) // (WHOLE * _HOUR_MS)), currency=self.currency)


class AttemptRow(Value, frozen=True, kw_only=True):
    """One attempt. started: when its GPUs became its own; began: when its first process was seen; ended: when they were
    free again. seconds and below: as the executor measured. cost: of the GPUs and cores that it held, None if no price is known.
    executor: where it was given its places, as `clusters.named` says; '' = before that was written down. rate: what it costs by the hour,
    None if no price was known at its start.
    """

    id: str
    job: str
    project: str
    number: int
    places: tuple[Place, ...]
    started: datetime
    borrowed: int = 0
    began: datetime | None = None
    ended: datetime | None = None
    ending: Ending | None = None
    exit_code: int | None = None
    message: str = ""
    wish: Wish = ""
    seconds: float = 0
    cpu_seconds: float = 0
    peak_bytes: int = 0
    cost: Money | None = None
    executor: str = ""
    rate: Rate | None = None

    @property
    def milli(self) -> int:
        return sum(place.milli for place in self.places)

    @property
    def gpu_ms(self) -> int:
        """Milliseconds of whole GPUs that it held; 0 while it holds them."""
        return round(self.milli * (self.ended - self.started).total_seconds()) if self.ended else 0


class MarketSpan(Value, frozen=True, kw_only=True):
    """A time in which a market had spot machines that work could be put on. until: None = it still has."""

    market: str
    since: datetime
    until: datetime | None = None


class JobPage(Value, frozen=True, kw_only=True):
    """A job with its attempts, oldest first."""

    job: Job
    attempts: tuple[AttemptRow, ...]


class Span(Value, frozen=True, kw_only=True):
    """An estimate with what it rests on. likely: the median; late: so late or earlier nine times of ten; None = cannot be said.
    basis: in words.
    """

    likely: datetime | None
    late: datetime | None
    basis: str


class Offer(Value, frozen=True, kw_only=True):
    """What a job costs on one kind of GPU that would do. machines: those that have it at this price, 0 = none is known yet. hour: of all that it
    asks for; likely, most: as long as its like ran at the median and nine times of ten, None where no duration is known.
    """

    price: GpuPrice
    machines: int
    hour: Money
    likely: Money | None
    most: Money | None


class Price(Value, frozen=True, kw_only=True):
    """What a job will cost. likely: its median duration on the cheapest GPUs that would do; most: nine times of ten no more, on the dearest; None
    where no price or no duration is known. basis: in words. offers: for each kind of GPU, cheapest first; unknown: kinds that would do and
    have no price, and what to do about it.
    """

    likely: Money | None
    most: Money | None
    basis: str
    offers: tuple[Offer, ...] = ()
    unknown: tuple[str, ...] = ()


class Explanation(Value, frozen=True, kw_only=True):
    """Why a job waits, when it will start and end, what it will cost. reason: 'runs', 'ended' or what keeps it waiting; words: the same
    for a person. ahead: jobs that go first; missing: thousandths of GPUs that are not free.
    """

    job: str
    state: str
    reason: str
    words: str
    start: Span
    end: Span
    cost: Price
    ahead: int = 0
    missing: int = 0
    next_step: str = ""


class AbandonedExecutor(Value, frozen=True, kw_only=True):
    """What was closed. attempts: their ids; waiting, ended: how many of their jobs start anew, and how many do not."""

    executor: str
    attempts: tuple[str, ...]
    waiting: int
    ended: int
    warning: str


class LogText(Value, frozen=True, kw_only=True):
    """A page of a job's log. next: the offset to go on from; ended: nothing will follow in this attempt."""

    job: str
    attempt: int
    rank: int
    text: str
    next: int
    ended: bool
    cut: int = 0


class Usage(Value, frozen=True, kw_only=True):
    """What jobs of a project used in an interval. gpu_seconds: held, thousandths counted as parts; cpu_seconds, peak_bytes: as measured,
    of attempts that ended in it. cost: of these, None where it is not known or of several currencies.
    """

    project: str
    job: str
    gpu_seconds: float
    cpu_seconds: float
    peak_bytes: int
    cost: Money | None


class JobCost(Value, frozen=True, kw_only=True):
    """What attempts of a project that held GPUs at one price have cost. gpu: the model, or several of a gang; per_gpu_hour: of a whole one, None
    for several, and where none was known. price: which it is, in words. gpu_hours: held; cost: with the cores held beside them, None
    where no price was known.
    """

    gpu: str
    per_gpu_hour: Money | None
    gpu_hours: float
    cost: Money | None
    attempts: int
    price: str


class Quota(Value, frozen=True, kw_only=True):
    """What a project may use: its own GPUs, what it may borrow and lends, and GPU-hours and money in each window (calendar, UTC)."""

    project: str
    gpus: int
    cohort: str
    borrow: int | None
    lend: int | None
    gpu_hours: float | None
    money: Money | None
    window: Window
    weight: float
    at: datetime
    by: str


class QuotaState(Value, frozen=True, kw_only=True):
    """A quota now. using, borrowed: thousandths of GPUs; gpu_hours, spent: in the window that began at `since`. others: what was spent in
    currencies of which no rate says what they are worth.
    """

    quota: Quota
    using: int
    borrowed: int
    gpu_hours: float
    spent: Money
    since: datetime
    running: int
    waiting: int
    others: tuple[Money, ...] = ()


class Cohort(Value, frozen=True, kw_only=True):
    """Projects that lend to each other. gpus: of all their quotas; using: thousandths of GPUs."""

    cohort: str
    projects: tuple[str, ...]
    gpus: int
    using: int
    machines: int


# --- requests


class SubmitJob(Request[Job], frozen=True, kw_only=True):
    """Submit a job: a command that the queue runs when its resources are free and its project's quota allows.

    command: words, no shell. `python` is the environment's own. name: for people. resources: a JSON object: gpus, milli, models,
    nodes, cpus, memory, disk. environment: variables for it, no secrets: they are kept as they are. requirements: text of a
    requirements file for an environment of its own, on top of the platform's packages. image: of a container, for executors
    that run containers. files: working files, path → text. source: instead of files, an absolute directory on the
    platform's machine, or the digest of a bundle. priority: higher goes first where the policy asks for it. deadline: when it
    should be done. time_limit: seconds after which an attempt is stopped, 0 = none. preemptible: may be stopped and started again.
    checkpoint: keep a directory (MACADAM_CHECKPOINT) from attempt to attempt. checkpoint_every: seconds between its own saves, 0 =
    only when asked. signal: what asks it to save and end. grace: seconds until it is ended after that. max_restarts: attempts after one that
    was killed or lost; with 0 it runs at most once. restart_codes: exit codes that ask for another attempt. group: jobs whose
    durations are alike.
    """

    project: Name
    command: Annotated[tuple[Word, ...], msgspec.Meta(min_length=1, max_length=256)]
    name: Text = ""
    resources: Resources = Resources()
    environment: Annotated[dict[Variable, Word], msgspec.Meta(max_length=200)] = msgspec.field(default_factory=dict)
    requirements: Annotated[str, msgspec.Meta(max_length=100_000)] = ""
    image: Image = ""
    files: dict[Text, str] = msgspec.field(default_factory=dict)
    source: SourceText = ""
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    deadline: datetime | None = None
    time_limit: Annotated[float, msgspec.Meta(ge=0, le=366 * DAY)] = 0
    preemptible: bool = True
    checkpoint: bool = False
    checkpoint_every: Annotated[float, msgspec.Meta(ge=0, le=30 * DAY)] = 0
    signal: Annotated[int, msgspec.Meta(ge=1, le=31)] = 15
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    restart_codes: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=255)], ...], msgspec.Meta(max_length=50)] = (
        75,
    )
    group: Text = ""


class EstimateJob(Request[Explanation], frozen=True, kw_only=True):
    """Say when a job would start and end and what it would cost, before it is submitted. Fields as of submitting.

    seconds: how long it is thought to run, 0 = as its like ran before.
    """

    project: Name
    command: Annotated[tuple[Word, ...], msgspec.Meta(max_length=256)] = ()
    name: Text = ""
    resources: Resources = Resources()
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    deadline: datetime | None = None
    time_limit: Annotated[float, msgspec.Meta(ge=0, le=366 * DAY)] = 0
    preemptible: bool = True
    checkpoint: bool = False
    checkpoint_every: Annotated[float, msgspec.Meta(ge=0, le=30 * DAY)] = 0
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    group: Text = ""
    seconds: Annotated[float, msgspec.Meta(ge=0, le=366 * DAY)] = 0


class ListJobs(Request[tuple[Job, ...]], frozen=True, kw_only=True):
    """List a project's jobs, newest first.

    state: only those in it; '' = all, 'open' = those that have not ended. before: only those older than this job's id.
    """

    project: Name
    state: Literal["", "open", "waiting", "starting", "running", "stopping", "succeeded", "failed", "cancelled"] = ""
    before: Annotated[str, msgspec.Meta(max_length=40)] = ""
    limit: Limit = 100


class ShowJob(Request[JobPage], frozen=True, kw_only=True):
    """Show one job and its attempts."""

    project: Name
    job: JobId


class ExplainJob(Request[Explanation], frozen=True, kw_only=True):
    """Say why a job waits, when it will start and end, and what it will cost."""

    project: Name
    job: JobId


class ShowJobCosts(Request[tuple[JobCost, ...]], frozen=True, kw_only=True):
    """Show what a project's jobs have paid for GPUs, by model and price, dearest first.

    start, end: of attempts that ended then, UTC; end excluded; empty: all
    """

    project: Name
    start: datetime | None = None
    end: datetime | None = None


class ReadLog(Request[LogText], frozen=True, kw_only=True):
    """Read a page of a job's log.

    attempt: its number, 0 = the newest. rank: the member of a gang. offset: byte to read from. limit: bytes.
    """

    project: Name
    job: JobId
    attempt: Annotated[int, msgspec.Meta(ge=0)] = 0
    rank: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1 << 16


class CancelJob(Request[Job], frozen=True, kw_only=True):
    """Cancel a job: one that waits ends at once, one that runs is asked to and ended after its grace.

    grace: seconds instead of the job's own, -1 = its own.
    """

    project: Name
    job: JobId
    grace: Annotated[float, msgspec.Meta(ge=-1, le=3600)] = -1.0


class AbandonExecutor(Request[AbandonedExecutor], frozen=True, kw_only=True):
    """Give up an executor that is gone for good: its open attempts are closed as lost, and their jobs start anew as their restarts allow.

    executor: as the queue's warning and an attempt name it. What ran there may still run: make sure that it does not. Refused if it is the
    chosen one and answers.
    """

    executor: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class SetPriority(Request[Job], frozen=True, kw_only=True):
    """Change the priority of a job that has not ended."""

    project: Name
    job: JobId
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)]


class SetQuota(Request[Quota], frozen=True, kw_only=True):
    """Set what a project may use, in place of what was set before. With no quotas at all nothing is limited.

    tenant: the project; what it gets is taken from others, so its own administrators have no say. gpus: its own. cohort: those it lends to and borrows from. borrow: at most so many beyond its own. lend: at most so many of its own. gpu_hours:
    in each window. money: decimal amount in each window, '' = no limit. window: by the calendar in UTC. weight: its part among
    borrowers.
    """

    tenant: Name
    gpus: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    cohort: Name = "all"
    borrow: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    lend: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    gpu_hours: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    money: Annotated[str, msgspec.Meta(pattern=r"^([0-9]{1,12}(\.[0-9]{1,6})?)?\Z")] = ""
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")] = "USD"
    window: Window = "month"
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0


class RemoveQuota(Request[Quota], frozen=True, kw_only=True):
    """Remove a project's quota: it then uses only what others leave, if they have quotas."""

    tenant: Name


class ShowQuota(Request[QuotaState], frozen=True, kw_only=True):
    """Show a project's quota and what of it is used."""

    project: Name


class ListQuotas(Request[tuple[QuotaState, ...]], frozen=True, kw_only=True):
    """List all projects' quotas and what of them is used."""


class ListCohorts(Request[tuple[Cohort, ...]], frozen=True, kw_only=True):
    """List cohorts: who lends to whom, and what they use together. machines: GPUs that there are."""
