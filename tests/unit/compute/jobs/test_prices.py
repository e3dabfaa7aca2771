"""What jobs cost by the machines that they are put on: before, while and after they run, and never more than there is."""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.compute.jobs.bench import Bench, open_bench

from macadam.compute.billing.budget_types import ListBudgets, SetBudget
from macadam.compute.billing.schema import spend
from macadam.compute.billing.types import ExchangeRate, ImportPrices, ImportRates
from macadam.compute.catalogue.prices import Price
from macadam.compute.jobs import past, registry
from macadam.compute.jobs import picture as pictures
from macadam.compute.jobs.picture import HOLD_EVERY, Picture
from macadam.compute.jobs.price_service import Seen, ShowGpuPrices
from macadam.compute.jobs.prices import Desk, Unpriced
from macadam.compute.jobs.room import Room
from macadam.compute.jobs.types import (
    AttemptRow,
    EstimateJob,
    ExplainJob,
    Job,
    Place,
    Quota,
    Rate,
    Resources,
    SetQuota,
    ShowJobCosts,
    ShowQuota,
    Spec,
)
from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.types import Policy, Spent
from macadam.errors import InvalidInput, NotAuthorised, NotFound, SettingInvalid
from macadam.ports import Device, Node
from macadam.settings import Settings
from macadam.testing import Clock, token_of
from macadam.values import Money

H100, A100, L40S = "h100-sxm-80gb", "a100-sxm-80gb", "l40s-48gb"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
FREE_CORES = {"MACADAM_PRICE_CPU_HOUR": "0"}


def machine(name: str, model: str, gpus: int = 2, **more: object) -> Node:
    devices = tuple(Device(id=f"gpu:{name}/{n}", index=n, model=model, virtual=True) for n in range(gpus))
    return Node(name=name, cpus=64_000, memory=1 << 40, devices=devices, **more)  # type: ignore[arg-type]


RENTED = machine("cloud", H100, provider="aws", region="us-east-1", machine="p5.48xlarge", spot=False)
MINE = machine("rack-1", A100)


def price(micros: int, gpu: str, currency: str = "USD", **more: object) -> Price:
    money = Money(micros=micros, currency=currency)
    facts = {
        "provider": "own",
        "region": "own",
        "instance": "rack-1",
        "gpus": 2,
        "kind": "owned",
        "dated": date(2026, 11, 1),
    }
    return Price(**facts | {"gpu": gpu, "per_gpu_hour": money, "source": "our books"} | more)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench(("p", "q"), FREE_CORES, clock=Clock(NOON)) as made:
        made.executor.machines = (RENTED, MINE)
        made.platform.call(ImportPrices(prices=(price(3_600_000, A100),)))
        yield made


def run(bench: Bench, model: str, seconds: float, **more: object) -> Job:
    """Runs a job on one GPU of this model for so long, by the queue's clock."""
    job = bench.submit(resources=Resources(gpus=1, models=(model,)), **more)
    bench.turn()
    assert bench.now(job).state == "starting"
    bench.clock.pass_time(timedelta(seconds=seconds))
    bench.executor.end(f"{job.id}.1", seconds=seconds)
    bench.turn()
    return bench.now(job)


def test_each_attempt_is_charged_at_the_price_of_its_own_machine(bench: Bench) -> None:
    assert run(bench, A100, 100).spent == Money(micros=100_000)
    rented = run(bench, H100, 3600)
    assert rented.spent == Money(micros=6_880_000)
    (rate,) = [row.rate for row in bench.page(rented).attempts]
    assert rate is not None
    assert [(one.model, one.how, str(one.dated), one.stale) for one in rate.prices] == [
        (H100, "listed", "2026-11-09", False)
    ]
    said = bench.platform.call(ExplainJob(project="p", job=rented.id))
    assert "aws us-east-1 p5.48xlarge on-demand, of 2026-11-09" in said.cost.basis


def test_a_price_holds_for_those_that_start_on_its_day_and_no_running_job_becomes_dearer(bench: Bench) -> None:
    job = bench.submit(resources=Resources(gpus=1, models=(A100,)))
    bench.turn()
    bench.clock.pass_time(timedelta(days=1))
    bench.platform.call(ImportPrices(prices=(price(7_200_000, A100, dated=date(2026, 11, 22)),)))
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    assert bench.now(job).spent == Money(micros=24 * 3_600_000)
    assert run(bench, A100, 100).spent == Money(micros=200_000)


def test_what_it_will_cost_is_said_for_each_gpu_that_would_do_with_source_and_day(bench: Bench) -> None:
    said = bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=2), seconds=1800)).cost
    assert [(one.price.model, one.hour.micros, one.machines, one.likely) for one in said.offers] == [
        (A100, 7_200_000, 1, Money(micros=3_600_000)),
        (H100, 13_760_000, 1, Money(micros=6_880_000)),
    ]
    assert (said.likely, said.most) == (Money(micros=3_600_000), Money(micros=6_880_000))
    assert said.offers[0].price.source == "our books"
    only = bench.platform.call(
        EstimateJob(project="p", resources=Resources(gpus=2, models=("H100 SXM",)), seconds=1800)
    ).cost
    assert (only.likely, only.most, len(only.offers)) == (Money(micros=6_880_000), Money(micros=6_880_000), 1)


def test_a_gpu_that_the_catalogue_does_not_know_is_refused_when_it_is_asked_for(bench: Bench) -> None:
    with pytest.raises(NotFound, match="h1000"):
        bench.submit(resources=Resources(gpus=1, models=("h1000",)))
    with pytest.raises(NotFound, match="h1000"):
        bench.platform.call(EstimateJob(project="p", resources=Resources(gpus=1, models=("h1000",))))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"micros": 0}, "nothing"), ({"dated": date(2027, 1, 1)}, "2027"), ({"gpu": "h1000"}, "h1000")],
)
def test_a_price_of_nothing_of_the_future_or_of_an_unknown_gpu_is_refused(
    bench: Bench, wrong: dict[str, object], said: str
) -> None:
    plain = {"micros": 1, "gpu": A100}
    with pytest.raises((InvalidInput, NotFound), match=said):
        bench.platform.call(ImportPrices(prices=(price(**plain | wrong),)))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="cannot cost"):
        price(-1, A100)


def test_settings_of_less_than_nothing_or_of_no_currency_are_refused() -> None:
    for wrong in ({"MACADAM_PRICE_GPU_HOUR": "-1"}, {"MACADAM_PRICE_CPU_HOUR": "-1"}, {"MACADAM_PRICE_CURRENCY": "€"}):
        with pytest.raises(SettingInvalid, match="MACADAM_PRICE"):
            Settings.load(wrong)


def test_under_a_hard_budget_a_gpu_without_a_price_is_named_with_what_to_do(bench: Bench) -> None:
    bench.executor.machines = (machine("odd", L40S), MINE)
    bench.platform.call(SetBudget(project="p", amount="100", hard=True))
    any_gpu, priced = bench.submit(), bench.submit(resources=Resources(gpus=1, models=(A100,)))
    bench.turn()
    assert [bench.now(one).state for one in (any_gpu, priced)] == ["waiting", "starting"]
    why = bench.platform.call(ExplainJob(project="p", job=any_gpu.id))
    assert (why.reason, "no price of l40s-48gb on odd is known" in why.words) == ("money", True)
    assert "macadam cost own --gpu l40s-48gb" in why.next_step
    assert why.cost.unknown


def test_a_quota_in_money_lets_no_gpu_be_had_whose_price_nobody_knows(bench: Bench) -> None:
    bench.executor.machines = (machine("odd", L40S),)
    bench.platform.call(SetQuota(tenant="p", gpus=2, money="100"))
    job = bench.submit()
    bench.turn()
    why = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert (bench.now(job).state, why.reason) == ("waiting", "money")


# --- currencies


def rate(bench: Bench, text: str) -> None:
    one = ExchangeRate(base="EUR", quote="USD", day=date(2026, 11, 20), rate=text, source="test")
    bench.platform.call(ImportRates(rates=(one,)))


def test_a_price_in_another_currency_counts_at_an_imported_rate_and_else_makes_the_job_wait(bench: Bench) -> None:
    bench.executor.machines = (machine("rack-2", L40S),)
    bench.platform.call(ImportPrices(prices=(price(1_800_000, L40S, "EUR", instance="rack-2"),)))
    bench.platform.call(SetBudget(project="p", amount="100", hard=True))
    job = bench.submit(time_limit=1000)
    bench.turn()
    why = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert (bench.now(job).state, why.reason) == ("waiting", "money")
    assert "priced in EUR" in why.words
    assert "macadam cost add-rates" in why.next_step
    rate(bench, "1.25")
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=100))
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    assert bench.now(job).spent == Money(micros=62_500)
    assert "1.80 EUR" in bench.platform.call(ExplainJob(project="p", job=job.id)).cost.basis


def test_work_is_priced_in_the_currency_of_its_projects_budget(bench: Bench) -> None:
    rate(bench, "1.25")
    bench.platform.call(SetBudget(project="p", amount="10", currency="EUR", hard=True))
    assert run(bench, A100, 100).spent == Money(micros=80_000, currency="EUR")
    (state,) = bench.platform.call(ListBudgets(project="p"))
    assert (state.spent, state.others) == (Money(micros=80_000, currency="EUR"), ())
    with pytest.raises(InvalidInput, match="beside it"):
        bench.platform.call(SetQuota(tenant="p", gpus=1, money="5"))
    bench.platform.call(SetQuota(tenant="q", gpus=1, money="5", currency="EUR"))
    bench.platform.call(SetBudget(project="q", amount="10"))
    job = bench.submit("q", Resources(gpus=1, models=(A100,)))
    bench.turn()
    why = bench.platform.call(ExplainJob(project="q", job=job.id))
    assert (why.reason, "one sum cannot be held to both" in why.words) == ("money", True)


def test_what_was_paid_in_another_currency_is_added_to_no_quota_in_silence(bench: Bench) -> None:
    run(bench, A100, 100)
    euros = {"MACADAM_PRICE_CURRENCY": "EUR", **FREE_CORES}
    object.__setattr__(bench.platform.ports, "settings", Settings.load(euros, home=bench.platform.settings.home))
    bench.new_queue()
    bench.platform.call(SetQuota(tenant="p", gpus=4, money="5", currency="EUR"))
    job = bench.submit(resources=Resources(cpus=1))
    bench.turn()
    why = bench.platform.call(ExplainJob(project="p", job=job.id))
    assert (bench.now(job).state, why.reason, "0.10 USD" in why.words) == ("waiting", "money", True)
    shown = bench.platform.call(ShowQuota(project="p"))
    assert (shown.spent, shown.others) == (Money(micros=0, currency="EUR"), (Money(micros=100_000),))
    rate(bench, "1.25")
    assert bench.platform.call(ShowQuota(project="p")).spent == Money(micros=80_000, currency="EUR")
    bench.turn()
    assert bench.now(job).state == "starting"


# --- parts


def sliced(model: str, *names: str, memory: int = 0) -> Node:
    devices = tuple(Device(id=f"gpu:n/mig:{name}", index=n, model=model, memory=memory) for n, name in enumerate(names))
    return Node(
        name="n", cpus=8000, memory=1 << 34, devices=devices, provider="aws", region="us-east-1", machine="p5.48xlarge"
    )


@pytest.mark.parametrize(
    ("node", "eighths"),
    [
        (sliced(H100, "1g.10gb-0"), 1),
        (sliced(H100, "3g.40gb-0"), 4),
        (sliced(H100, "7g.80gb-0"), 8),
        (sliced(H100, "7", memory=20 << 30), 2),
        (sliced(H100, "7"), None),
        (sliced(L40S, "1g.6gb-0"), None),
    ],
)
def test_a_slice_costs_its_share_of_its_gpu_and_nothing_is_said_where_that_is_not_known(
    bench: Bench, node: Node, eighths: int | None
) -> None:
    with bench.platform.ports.sql.read() as sql:
        found = Desk(sql, bench.platform.settings.prices, NOON, (node,)).most("p", Resources(gpus=1))
    if eighths is None:
        assert isinstance(found, Unpriced)
    else:
        assert isinstance(found, Rate)
        assert found.nanos == 6_880_000 * 1000 * eighths // 8


def test_a_part_of_a_gpu_costs_its_part(bench: Bench) -> None:
    job = bench.submit(resources=Resources(milli=250, models=(A100,)))
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=100))
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    assert bench.now(job).spent == Money(micros=25_000)


# --- looking back


def test_what_jobs_have_paid_is_shown_by_gpu_and_price(bench: Bench) -> None:
    run(bench, A100, 3600)
    run(bench, H100, 1800)
    run(bench, H100, 1800)
    paid = bench.platform.call(ShowJobCosts(project="p"))
    assert [(one.gpu, one.attempts, one.gpu_hours, one.cost) for one in paid] == [
        (H100, 2, 1.0, Money(micros=6_880_000)),
        (A100, 1, 1.0, Money(micros=3_600_000)),
    ]
    assert past.an_hour(paid) == Money(micros=5_240_000)
    assert bench.platform.call(ShowJobCosts(project="q")) == ()
    early = ShowJobCosts(project="p", end=NOON + timedelta(hours=1))
    assert bench.platform.call(early) == ()
    assert past.an_hour([*paid, msgspec.structs.replace(paid[0], cost=Money(micros=1, currency="EUR"))]) is None


# --- what is on bills


def test_own_hardware_counts_beside_bills_and_rented_once_within_them(bench: Bench) -> None:
    bench.platform.call(SetBudget(project="p", amount="1000"))
    run(bench, A100, 3600)
    run(bench, H100, 3600)
    row = {"project": "p", "day": "2026-11-21", "currency": "USD", "bill": "b", "micros": 6_500_000}  # as it was billed
    bench.platform.ports.sql.write(lambda sql: sql.execute(sa.insert(spend).values(row)))
    bench.clock.pass_time(timedelta(days=1))
    (state,) = bench.platform.call(ListBudgets(project="p"))
    metered = 3_600_000 + 6_880_000
    assert (state.metered.micros, state.billed.micros) == (metered, 6_500_000)
    assert state.spent.micros == metered  # never less than the meter
    row |= {"bill": "c", "day": "2026-11-20", "micros": 10_000_000}
    bench.platform.ports.sql.write(lambda sql: sql.execute(sa.insert(spend).values(row)))
    (state,) = bench.platform.call(ListBudgets(project="p"))
    assert state.spent.micros == 3_600_000 + 16_500_000


def test_a_gang_on_own_and_rented_machines_is_on_bills_with_its_rented_part_only(bench: Bench) -> None:
    bench.platform.call(SetBudget(project="p", amount="1000"))
    job = bench.submit(resources=Resources(gpus=4, nodes=2))
    bench.turn()
    bench.clock.pass_time(timedelta(seconds=3600))
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    assert bench.now(job).spent == Money(micros=2 * (3_600_000 + 6_880_000))
    row = {"project": "p", "day": "2026-11-21", "currency": "USD", "bill": "b", "micros": 20_000_000}
    bench.platform.ports.sql.write(lambda sql: sql.execute(sa.insert(spend).values(row)))
    (state,) = bench.platform.call(ListBudgets(project="p"))
    assert state.spent.micros == 20_000_000 + 2 * 3_600_000


def test_what_runs_is_not_held_where_a_bill_has_charged_it_already(bench: Bench) -> None:
    bench.platform.call(SetBudget(project="p", amount="10000", hard=True))
    bench.submit(resources=Resources(gpus=1, models=(H100,)))
    bench.turn()
    bench.clock.pass_time(timedelta(days=2))
    bench.turn()
    row = {"project": "p", "day": "2026-11-22", "currency": "USD", "bill": "b", "micros": 36 * 6_880_000}
    bench.platform.ports.sql.write(lambda sql: sql.execute(sa.insert(spend).values(row)))
    (state,) = bench.platform.call(ListBudgets(project="p"))
    assert state.spent.micros == 36 * 6_880_000
    ahead = 150 * 6_880_000 / 3600
    assert state.held.micros == pytest.approx(12 * 6_880_000 + ahead, abs=2)


def test_what_had_no_price_when_it_began_is_booked_once_it_has_one(bench: Bench) -> None:
    bench.executor.machines = (machine("rack-2", L40S),)
    bench.platform.call(SetBudget(project="p", amount="100"))
    job = bench.submit()
    bench.turn()
    bench.platform.call(ImportPrices(prices=(price(3_600_000, L40S, instance="rack-2"),)))
    bench.clock.pass_time(timedelta(seconds=100))
    bench.executor.end(f"{job.id}.1")
    bench.turn()
    (state,) = bench.platform.call(ListBudgets(project="p"))
    assert state.spent == Money(micros=100_000)


# --- limits, over random work

PRICES = {"cheap": 400_000, "usual": 3_000_000, "dear": 12_000_000}  # micros of a GPU's hour
CORE = 50_000
TURN = 5.0


def rate_of(micros: int, milli: int, cores: int) -> Rate:
    return Rate(nanos=micros * milli + CORE * cores, own=0, currency="USD")


class World:
    """Queue, machines and jobs without SQL: jobs end when they like, but for limits and what they are asked."""

    def __init__(self, nodes: list[Node], jobs: list[Job], limit: int, seed: int) -> None:
        self.nodes, self.limit, self.random = tuple(nodes), limit, random.Random(seed)
        self.price = {node.name: PRICES[node.name.partition("-")[0]] for node in nodes}
        self.waiting = {job.id: job for job in jobs}
        self.jobs: dict[str, Job] = {}
        self.rows: dict[str, AttemptRow] = {}
        self.ends: dict[str, float] = {}
        self.paid = self.started = 0
        self.now = NOON
        money = Money(micros=limit)
        facts = {"gpus": 4, "cohort": "all", "borrow": None, "lend": None, "gpu_hours": None, "window": "month"}
        self.quota = Quota(project="p", money=money, weight=1.0, at=NOON, by="x", **facts)  # type: ignore[arg-type]

    def picture(self) -> Picture:
        return Picture(
            now=self.now,
            nodes=self.nodes,
            waiting=tuple(job for job in self.waiting.values() if job.submitted <= self.now),
            attempts=tuple(self.rows.values()),
            jobs=self.jobs,
            quotas=(self.quota,),
            spent={"p": Spent(micros=self.paid)},
            bounds={job.id: self.most(job) for job in self.waiting.values()},
        )

    def most(self, job: Job) -> Rate:
        asked = job.spec.resources
        prices = [self.price[n.name] for n in self.nodes if not asked.models or n.devices[0].model in asked.models]
        return rate_of(max(prices, default=0), asked.demand, asked.cpu_milli + asked.gpus)

    def turn(self, number: int) -> None:
        self.now = NOON + timedelta(seconds=TURN * number)
        for id_, end in list(self.ends.items()):
            if end <= self.now.timestamp():
                self.end(id_)
        seen = self.picture()
        decision = decide(self.now.timestamp(), pictures.state(seen), Policy())
        for stopped in decision.preemptions:
            self.stop(stopped.id, "preempt")
        if number % (HOLD_EVERY // TURN) == 0:
            for row in list(self.rows.values()):
                if not row.wish and pictures.overspent(seen, row):
                    self.stop(row.job, "money")
        room = Room(self.picture())
        with_gpus = [
            (self.waiting[one.id], pictures.places(self.waiting[one.id], one.placement, self.nodes))
            for one in decision.starts
            if one.id in self.waiting
        ]
        for job, got in [*with_gpus, *pictures.plain_starts(seen, with_gpus)]:
            if room.take(job, got):
                self.start(job, got)

    def start(self, job: Job, given: tuple[Place, ...]) -> None:
        self.started += 1
        del self.waiting[job.id]
        self.jobs[job.id] = job
        nanos = sum(self.price[one.node] * one.milli + CORE * one.cpus for one in given)
        row = AttemptRow(id=f"{job.id}.1", job=job.id, project="p", number=1, places=given, started=self.now)
        self.rows[job.id] = msgspec.structs.replace(row, rate=Rate(nanos=nanos, own=0, currency="USD"))
        lasts = self.random.uniform(1, 400)
        if job.spec.time_limit:
            lasts = min(lasts, job.spec.time_limit + self.random.uniform(0, job.spec.grace))
        self.ends[job.id] = self.now.timestamp() + lasts

    def stop(self, id_: str, wish: str) -> None:
        row = self.rows[id_]
        self.rows[id_] = msgspec.structs.replace(row, wish=wish)
        leaves = self.now.timestamp() + self.random.uniform(0, self.jobs[id_].spec.grace)
        self.ends[id_] = min(self.ends[id_], leaves)

    def end(self, id_: str) -> None:
        row, job = self.rows.pop(id_), self.jobs.pop(id_)
        del self.ends[id_]
        held = (self.now - row.started).total_seconds()
        self.paid += row.rate.cost(held).micros if row.rate else 0
        if row.wish:
            self.waiting[id_] = msgspec.structs.replace(
                job, attained=job.attained + held, preemptions=job.preemptions + 1
            )

    def owed(self) -> int:
        """What all has cost by now."""
        rates = [(row.rate, (self.now - row.started).total_seconds()) for row in self.rows.values()]
        return self.paid + sum(one.cost(held).micros for one, held in rates if one)


resources = st.one_of(
    st.builds(Resources, gpus=st.integers(1, 3), models=st.sampled_from([(), (L40S,), (H100, A100)])),
    st.builds(Resources, milli=st.integers(1, 999)),
    st.builds(Resources, cpus=st.integers(1, 30)),
)
works = st.tuples(
    resources, st.sampled_from([0, 10, 60, 200]), st.sampled_from([0, 5, 30]), st.integers(0, 200), st.booleans()
)
MODELS = {"cheap": L40S, "usual": A100, "dear": H100}


@given(
    st.lists(st.sampled_from(sorted(PRICES)), min_size=1, max_size=4),
    st.lists(works, min_size=1, max_size=12),
    st.integers(1, 3_000_000),
    st.integers(0, 1 << 30),
)
@settings(max_examples=40, deadline=None)
def test_money_spent_in_a_window_is_never_above_the_limit_whatever_gpus_it_went_to(
    kinds: list[str], asked: list[tuple[Resources, int, int, int, bool]], limit: int, seed: int
) -> None:
    nodes = [machine(f"{kind}-{n}", MODELS[kind]) for n, kind in enumerate(kinds)]
    jobs = [
        Job(
            ref=f"job:{n}",
            id=f"{n}",
            project="p",
            state="waiting",
            spec=Spec(name="", command=("x",), resources=r, time_limit=lasts, grace=grace, preemptible=may),
            priority=0,
            author="x",
            submitted=NOON + timedelta(seconds=at),
        )
        for n, (r, lasts, grace, at, may) in enumerate(asked)
    ]
    world = World(nodes, jobs, limit, seed)
    for number in range(90):
        world.turn(number)
        assert world.owed() <= limit


@pytest.mark.parametrize("seed", range(4))
def test_a_hard_budget_and_a_quota_hold_in_sql_for_random_work_on_gpus_of_several_prices(
    bench: Bench, seed: int
) -> None:
    """The live queue itself: jobs end when they like, at the latest their grace after their limit or after they were asked."""
    draw, limit = random.Random(seed), 400_000
    bench.executor.machines = (RENTED, MINE, machine("rack-2", L40S))
    bench.platform.call(ImportPrices(prices=(price(1_200_000, L40S, instance="rack-2"),)))
    bench.platform.call(SetBudget(project="p", amount="0.4", hard=True, period="year"))
    bench.platform.call(SetQuota(tenant="q", gpus=6, money="0.4"))
    ends: dict[str, float] = {}
    asked: set[str] = set()
    for _ in range(45):
        if draw.random() < 0.4:
            models = draw.choice([(), (A100,), (L40S, A100)])
            lasts = {"time_limit": draw.choice([0, 20, 60]), "grace": draw.choice([0, 5, 30])}
            bench.submit(draw.choice("pq"), Resources(gpus=draw.choice([1, 2]), models=models), **lasts)
        bench.turn()
        for one, order in bench.executor.orders.items():
            if one not in ends:
                most = order.time_limit + draw.uniform(0, order.grace) if order.time_limit else 1e6
                ends[one] = bench.clock().timestamp() + min(draw.uniform(1, 300), most)
            if one in bench.executor.stopped and one not in asked:
                asked.add(one)
                ends[one] = min(ends[one], bench.clock().timestamp() + draw.uniform(0, order.grace))
        bench.clock.pass_time(timedelta(seconds=TURN))
        for one, end in list(ends.items()):
            if end <= bench.clock().timestamp() and bench.executor.attempts[one].state != "ended":
                bench.executor.end(one, exit_code=75 if one in asked else 0, why="stopped" if one in asked else "")
        assert max(paid(bench, project) for project in "pq") <= limit
    (state,) = bench.platform.call(ListBudgets(project="p"))
    quota = bench.platform.call(ShowQuota(project="q"))
    assert 0 < state.spent.micros <= limit
    assert 0 < quota.spent.micros <= limit


def paid(bench: Bench, project: str) -> int:
    """What all attempts have cost by now, those that run included."""
    with bench.platform.ports.sql.read() as sql:
        rows = registry.between(sql, NOON, NOON + timedelta(days=1), project)
    held = [(row.rate, ((row.ended or bench.clock()) - row.started).total_seconds()) for row in rows]
    assert all(rate for rate, _ in held)
    return sum(rate.cost(seconds).micros for rate, seconds in held if rate)


def test_a_job_that_was_stopped_may_run_for_its_whole_time_limit_again_and_is_held_to_that() -> None:
    world = World([machine("usual-0", A100)], [plain_job(time_limit=100.0, attained=90.0)], 10**9, 0)
    (waiting,) = pictures.state(world.picture()).waiting
    assert waiting.time_limit - waiting.attained == 100


def test_what_is_asked_to_stop_still_counts_as_paid_for_until_it_is_gone() -> None:
    world = World([machine("usual-0", A100)], [plain_job(grace=50.0)], 10**9, 0)
    world.turn(0)
    world.now += timedelta(seconds=1000)
    world.stop("0", "cancel")
    seen = pictures.state(world.picture())
    assert seen.running == ()
    assert seen.spent["p"].micros == world.rows["0"].rate.cost(1000 + 50 + pictures.LATE).micros  # type: ignore[union-attr]
    assert seen.spent["p"].gpu_seconds == 1000


def test_two_that_start_in_one_turn_are_not_both_promised_the_same_money() -> None:
    with_gpu, without = plain_job(grace=0.0), plain_job(grace=0.0)
    spec = msgspec.structs.replace(without.spec, resources=Resources(cpus=2))
    without = msgspec.structs.replace(without, id="1", ref="job:1", spec=spec)
    world = World([machine("usual-0", A100)], [with_gpu, without], 0, 0)
    seen = world.picture()
    limit = max(pictures.needs(job, seen) for job in (with_gpu, without)) + 1
    for both, expected in ((0, ["0"]), (limit, ["0", "1"])):
        world = World([machine("usual-0", A100)], [with_gpu, without], limit + both, 0)
        world.turn(0)
        assert sorted(world.rows) == expected


def plain_job(attained: float = 0, **more: float) -> Job:
    spec = Spec(name="", command=("x",), resources=Resources(gpus=1), **more)  # type: ignore[arg-type]
    facts = {"ref": "job:0", "id": "0", "project": "p", "state": "waiting", "priority": 0, "author": "x"}
    return Job(**facts, spec=spec, submitted=NOON, attained=attained)  # type: ignore[arg-type]


def test_what_is_shown_of_a_gpu_is_what_its_job_is_charged(bench: Bench) -> None:
    one = run(bench, A100, 3600)
    run(bench, H100, 60)
    shown = {(p.node, p.model): p for p in bench.platform.call(ShowGpuPrices(project="p"))}
    assert set(shown) == {("cloud", H100), ("rack-1", A100)}
    assert shown["rack-1", A100].per_gpu_hour == one.spent == Money(micros=3_600_000)
    assert all(price.charged for price in shown.values())
    assert "aws" in shown["cloud", H100].words
    asked = (Seen(node="elsewhere", model=H100), Seen(node="rack-1", model=A100))
    least, own = bench.platform.call(ShowGpuPrices(project="*", devices=asked))
    assert own == shown["rack-1", A100]
    assert not least.charged
    assert "the least asked" in least.words


def test_a_project_sees_prices_in_its_currency_and_nobody_elses(bench: Bench) -> None:
    run(bench, A100, 60)
    bench.platform.call(SetBudget(project="p", amount="100", currency="EUR"))
    rate = ExchangeRate(base="USD", quote="EUR", day=NOON.date(), rate="0.5", source="test")
    bench.platform.call(ImportRates(rates=(rate,)))
    asked = ShowGpuPrices(project="p", devices=(Seen(node="rack-1", model=A100),))
    (shown,) = bench.platform.call(asked)
    assert shown.per_gpu_hour == Money(micros=1_800_000, currency="EUR")
    token = token_of(bench.platform, "ann", {"q": "viewer"})
    with pytest.raises(NotAuthorised):
        bench.platform.call(asked, token=token)
