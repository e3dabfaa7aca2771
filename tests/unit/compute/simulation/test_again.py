"""Between what happens and the instants that a decision names, no decision would be another."""

import math
from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.compute.scheduling.decide import decide
from macadam.compute.scheduling.types import Decision, Node, Policy, Quota, Running, State, Work
from macadam.compute.simulation.replay import Replay

EPOCH = 1.7e9 + 0.1  # as the live queue counts: instants are exact to less than a microsecond
NODES = (Node(name="bought", gpus=3, market="on-demand"), Node(name="spot", gpus=3, market="spot"))
OWNED = (
    Quota(tenant="a", gpus=3),
    Quota(tenant="b", gpus=1, borrow=3),
    Quota(tenant="c", gpus=2, lend=1, gpu_hours=0.25),
)


class Watched(Replay):
    """Asks `decide` at many an instant at which nothing happens."""

    missed: Callable[[float, State, Decision], None]

    def _decide(self, watch: Callable[[float, State, Decision], None] | None) -> float:
        again = super()._decide(watch)
        comes = [one.work.submitted for one in self._jobs if one.work.submitted > self.now]
        valid = [at for at, kind, job, stamp in self._events if kind or stamp == self._jobs[job].stamp]
        ends = min([again, *comes, *valid])
        if ends == math.inf:
            ends = self.now + 2000
        state = State(
            nodes=self.nodes,
            waiting=tuple(self._jobs[at].work for at in self._waiting.values()),
            running=tuple(one for at in self._running.values() if (one := self._jobs[at].running)),
            quotas=self.quotas,
            spent=self._spent,
        )
        step = max(1.0, (ends - self.now) / 60)
        at = self.now + step
        while at < ends - 0.01:
            found = decide(at, state, self.policy, self.history)
            assert not found.starts, (at, ends, again, found)
            assert not found.preemptions, (at, ends, again, found)
            at += step
        return again


@st.composite
def worlds(draw: st.DrawFn) -> list[Work]:
    return [
        Work(
            id=f"w{at}",
            tenant=draw(st.sampled_from("abc")),
            submitted=EPOCH + draw(st.sampled_from([0, 0, 10, 40, 333, 700, 1000])),
            gpus=draw(st.sampled_from([1, 1, 2, 3, 5])),
            seconds=draw(st.sampled_from([5.0, 20.0, 100.0, 450.0, 900.0, 2500.3])),
            priority=draw(st.integers(0, 1)),
            preemptible=draw(st.sampled_from([True, True, True, False])),
            markets=draw(st.sampled_from([(), (), ("spot",), ("spot", "on-demand")])),
            checkpoint_every=draw(st.sampled_from([0.0, 0.0, 90.7, 100.0, 400.3, math.inf])),
            checkpoint_cost=draw(st.sampled_from([0.0, 5.0, 30.0])),
            time_limit=draw(st.sampled_from([0.0, 0.0, 3000.0])),
        )
        for at in range(draw(st.integers(2, 9)))
    ]


@settings(max_examples=100, deadline=None)
@given(
    worlds(),
    st.builds(
        Policy,
        order=st.sampled_from(["gittins", "gittins", "least-attained", "shortest", "oracle", "fifo", "priority"]),
        backfill=st.sampled_from(["any", "none"]),
        preempt=st.sampled_from(["order", "order", "never", "lower-priority"]),
        reclaim=st.sampled_from(["due", "due", "never"]),
        ageing=st.sampled_from([600.0, 2000.0]),
        patience=st.sampled_from([0.0, 100.0]),
        loss=st.sampled_from([0.1, 0.5, 1.0]),
    ),
    st.sampled_from([(), OWNED]),
)
def test_no_decision_changes_between_the_instants_that_are_named(
    works: list[Work], policy: Policy, quotas: tuple[Quota, ...]
) -> None:
    # Which borrower of several is stopped for what has aged may follow what is unsaved, which grows all the time.
    policy = msgspec.structs.replace(policy, ageing=1e6) if quotas else policy
    Watched(NODES, policy, quotas, cost=0.0).run(works)


def test_a_save_after_which_a_stop_costs_little_is_an_instant_to_look_again() -> None:
    works = [
        Work(id="long", tenant="a", submitted=EPOCH, gpus=3, seconds=450.0, checkpoint_every=90.7),
        Work(id="short", tenant="a", submitted=EPOCH, gpus=5, seconds=5.0),
    ]
    began = {one.id: one.began - EPOCH for one in Replay(NODES, Policy(), cost=0.0).run(works)}
    assert math.isclose(began["short"], 181.4, abs_tol=0.01)


def test_gpu_hours_are_used_up_at_the_instant_that_was_named_however_clocks_round() -> None:
    owned = (Quota(tenant="c", gpus=3, gpu_hours=0.25),)
    work = Work(id="w", tenant="c", submitted=EPOCH, gpus=3, seconds=450.0)
    seen: list[tuple[float, int]] = []
    Replay(NODES, Policy(), owned).run([work], lambda now, _, found: seen.append((now - EPOCH, len(found.preemptions))))
    assert sum(stops for at, stops in seen if at < 301) == 1


def test_who_has_aged_gets_at_once_what_another_borrows_at_that_instant() -> None:
    owned = (Quota(tenant="a", gpus=2), Quota(tenant="b", gpus=2))
    works = [
        Work(id="own", tenant="b", submitted=0.0, gpus=2, seconds=900.0),
        Work(id="aged", tenant="a", submitted=1.0, gpus=3, seconds=900.0),
        Work(id="late", tenant="b", submitted=700.0, gpus=2, seconds=5.0),
    ]

    def watch(now: float, state: State, decision: Decision) -> None:
        left = {work.id: work for work in [*state.waiting, *(one.work for one in state.running)]}
        stops, slots = {one.id for one in decision.preemptions}, {one.id: one.placement for one in decision.starts}
        after = [one for one in state.running if one.work.id not in stops]
        after += [Running(work=left[name], placement=where, started=now) for name, where in slots.items()]
        waits = tuple(left[name] for name in decision.waits)
        again = decide(now, State(nodes=state.nodes, waiting=waits, running=tuple(after), quotas=owned), policy)
        assert not again.starts
        assert not again.preemptions

    policy = Policy(order="least-attained", ageing=600.0)
    Replay((Node(name="n", gpus=4),), policy, owned).run(works, watch)
