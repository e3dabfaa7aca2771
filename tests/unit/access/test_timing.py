"""Nobody learns from how long a refusal takes whether a token ever was one."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

from macadam.access.authentication import Credentials, KnownToken, token_digest
from macadam.access.bootstrap import new_secret
from macadam.access.engine import KnownPrincipal
from macadam.errors import NotAuthenticated
from macadam.values import uuid7

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KINDS = ("unknown", "altered", "expired", "revoked", "disabled")
ROUNDS = 4000
"""Interleaved samples of each kind: whatever else the machine does meets all of them alike."""
CALLS = 5
"""Calls per sample: a single one is within a few ticks of the clock."""


class Door:
    """Credentials among a thousand others, and one secret of each kind."""

    def __init__(self) -> None:
        self.secrets = {kind: new_secret() for kind in KINDS}
        later, earlier = NOW + timedelta(days=1), NOW - timedelta(days=1)
        ids = {kind: uuid7() for kind in KINDS}
        tokens = {
            token_digest(new_secret()): KnownToken(id=uuid7(), principal="principal:alice", expires=later)
            for _ in range(1000)
        }
        for kind, holder, expires in (
            ("altered", "alice", later), ("expired", "alice", earlier), ("revoked", "alice", later), ("disabled", "bob", later),
        ):  # fmt: skip
            known = KnownToken(id=ids[kind], principal=f"principal:{holder}", expires=expires)
            tokens[token_digest(self.secrets[kind])] = known
        last = self.secrets["altered"][-1]
        self.secrets["altered"] = self.secrets["altered"][:-1] + ("A" if last != "A" else "B")
        self.revoked = frozenset({ids["revoked"], *(uuid7() for _ in range(100))})
        holders = {
            "principal:alice": KnownPrincipal(kind="person"),
            "principal:bob": KnownPrincipal(kind="person", active=False),
        }
        self.credentials = Credentials(tokens, holders)

    def refuse(self, kind: str) -> NotAuthenticated:
        try:
            self.credentials.authenticate(self.secrets[kind], NOW, self.revoked)
        except NotAuthenticated as error:
            return error
        raise AssertionError(kind)


def test_each_kind_of_wrong_token_is_refused_in_the_same_words() -> None:
    door = Door()
    assert len({(e.what, e.next_step, str(e.details)) for e in map(door.refuse, KINDS)}) == 1


def test_each_kind_of_wrong_token_takes_the_same_steps() -> None:
    """Instruction by instruction, in every function of ours that is entered on the way."""
    door = Door()
    seen = {kind: _instructions(lambda kind=kind: door.refuse(kind)) for kind in KINDS}
    assert len(seen["unknown"]) > 50
    for kind in KINDS:
        assert seen[kind] == seen["unknown"], kind


def _instructions(act: Callable[[], Any]) -> list[tuple[str, int]]:
    """(function, offset of the instruction) of what runs in the room of access."""
    steps: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if "macadam/access/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps.append((frame.f_code.co_name, frame.f_lasti))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return steps


def _samples(acts: dict[str, Callable[[], object]]) -> dict[str, list[int]]:
    """Nanoseconds of each act, interleaved: in each round every act once, in another order."""
    found: dict[str, list[int]] = {name: [] for name in acts}
    order = list(acts)
    gc.disable()
    try:
        for number in range(ROUNDS):
            shift = number % len(order)
            for name in order[shift:] + order[:shift]:
                act = acts[name]
                began = time.perf_counter_ns()
                for _ in range(CALLS):
                    act()
                found[name].append(time.perf_counter_ns() - began)
    finally:
        gc.enable()
    return found


def _superiority(one: list[int], other: list[int]) -> float:
    """The chance that a sample of `one` takes longer than one of `other`: Mann-Whitney's U over n², 0.5 if they are alike."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    total, position = 0.0, 0
    while position < len(ranked):
        end = position
        while end < len(ranked) and ranked[end][0] == ranked[position][0]:
            end += 1
        middle = (position + 1 + end) / 2
        total += middle * sum(1 for _, which in ranked[position:end] if which == 0)
        position = end
    return (total - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


MEDIANS, CHANCE = 0.06, 0.20
"""What counts as different: medians over 6 % apart, and a chance under 0.3 or over 0.7 to be the slower one. Whoever measures over a
network meets a thousand times that much noise; a refusal that ends early exceeds both (see the last test)."""


def _differs(one: list[int], other: list[int]) -> bool:
    medians = statistics.median(one), statistics.median(other)
    return abs(medians[0] / medians[1] - 1) > MEDIANS and abs(_superiority(one, other) - 0.5) > CHANCE


def test_the_time_of_a_refusal_does_not_tell_why() -> None:
    door = Door()
    found = _samples({kind: lambda kind=kind: door.refuse(kind) for kind in KINDS})
    for kind in KINDS:
        assert not _differs(found[kind], found["unknown"]), {k: statistics.median(v) / CALLS for k, v in found.items()}


def test_the_measure_finds_a_way_out_that_is_shorter() -> None:
    """The same look-up as one writes it first: an unknown token is refused as soon as that is known."""
    door = Door()
    tokens = door.credentials._tokens

    def early(kind: str) -> object:
        known = tokens.get(token_digest(door.secrets[kind]))
        if known is None:
            return None
        return (
            (known.expires or NOW) > NOW and known.id not in door.revoked and door.credentials._holders[known.principal]
        )

    found = _samples({kind: lambda kind=kind: early(kind) for kind in ("unknown", "disabled")})
    assert _differs(found["disabled"], found["unknown"]), {k: statistics.median(v) / CALLS for k, v in found.items()}
