"""What a ledger leaf says, and its one spelling in bytes.

A leaf is canonical JSON: keys sorted and ASCII, values text, whole numbers, lists and objects only, no
whitespace, UTF-8. For this subset sorted output equals RFC 8785 (JCS), so that any language can rebuild the
bytes. Fractions are written as text with `number`. Hashing and ordering leaves is for `tree`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from macadam.errors import IntegrityError, InvalidInput
from macadam.values import DIGEST_PATTERN, REF_PATTERN, digest_of, instant, parse_instant, uuid7

MAX_BYTES = 65_535
"""Longest leaf: an entry of a tiled log has a 16-bit length (https://c2sp.org/tlog-tiles)."""
MAX_DEPTH = 16
"""Deepest nesting of a body: evidence is flat; deeper is a mistake, and recursion stays bounded."""
LARGEST_INTEGER = 2**53 - 1
"""Largest whole number that every JSON reader holds exactly (RFC 8785, 3.2.2.3 and I-JSON)."""

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_KIND = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_ACTOR = re.compile(r"anonymous|[a-z][a-z_]*:[!-~]{1,200}")
_REF = re.compile(REF_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)
_DECISION_FIELDS = {"effect", "policies", "policy_set", "id"}


class Leaf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operation that changed state, or tried to: who, what, on which subject, using what, and why it was allowed.

    id: UUIDv7. at: RFC 3339, UTC, microseconds, Z. kind: operation name (`models.register_version`). actor:
    `principal:NAME` or the like; `anonymous` only if denied. project: empty for the platform itself. subject and uses:
    references; a denied call's subject is the text it asked for. request: digest of the request. decision: `effect`
    (allow or deny), `policies` (names of those that decided), `policy_set` (digest of all in force, empty if the
    caller was unknown), `id`. body: facts, as `canonical` takes them.
    """

    id: str
    at: str
    kind: str
    outcome: Literal["done", "denied"]
    actor: str
    project: str
    subject: str
    uses: list[str]
    request: str
    decision: dict[str, object]
    body: dict[str, object]
    v: Literal[1] = 1

    def __post_init__(self) -> None:
        _expect(self.v == 1, "v", self.v, "1")
        _expect(self.outcome in ("done", "denied"), "outcome", self.outcome, "'done' or 'denied'")
        _expect(_ID.fullmatch(self.id), "id", self.id, "a UUIDv7")
        _expect(_AT.fullmatch(self.at), "at", self.at, "a time such as 2026-11-21T07:00:00.000000Z")
        parse_instant(self.at)
        _expect(_KIND.fullmatch(self.kind), "kind", self.kind, "an operation's name such as models.register_version")
        _expect(_ACTOR.fullmatch(self.actor), "actor", self.actor, "a principal such as principal:alice")
        _expect(_DIGEST.fullmatch(self.request), "request", self.request, "sha256:<hex>")
        for ref in self.uses:
            _expect(_REF.fullmatch(ref), "uses", ref, "references such as model:delay-risk@7")
        self._check_decision()
        if self.outcome == "done":
            effect, subject = self.decision["effect"], self.subject
            _expect(effect == "allow", "decision.effect", effect, "'allow' when the outcome is 'done'")
            _expect(self.actor != "anonymous", "actor", self.actor, "a principal when the outcome is 'done'")
            _expect(subject == "" or _REF.fullmatch(subject), "subject", subject, "a reference such as run:0193")

    def _check_decision(self) -> None:
        decision = self.decision
        _expect(decision.keys() == _DECISION_FIELDS, "decision", sorted(decision), f"the fields {_DECISION_FIELDS}")
        _expect(decision["effect"] in ("allow", "deny"), "decision.effect", decision["effect"], "'allow' or 'deny'")
        policies, policy_set = decision["policies"], str(decision["policy_set"])
        named = isinstance(policies, list) and all(type(name) is str for name in policies)
        _expect(named, "decision.policies", policies, "a list of names")
        known = _DIGEST.fullmatch(policy_set) or (policy_set == "" and decision["effect"] == "deny")
        _expect(known, "decision.policy_set", policy_set, "sha256:<hex>")
        _expect(_ID.fullmatch(str(decision["id"])), "decision.id", decision["id"], "a UUIDv7")


def without_call(  # noqa: PLR0913 - what a leaf says, each by its name
    kind: str,
    *,
    at: datetime,
    actor: str,
    subject: str,
    rule: str,
    policy_set: str,
    body: dict[str, object],
    uses: Sequence[str] = (),
    project: str = "",
    outcome: Literal["done", "denied"] = "done",
) -> Leaf:
    """A leaf about what no operation asked for, such as a home's first start. rule: what stands where policies' names do."""
    return Leaf(
        id=uuid7(),
        at=instant(at),
        kind=kind,
        outcome=outcome,
        actor=actor,
        project=project,
        subject=subject,
        uses=list(uses),
        request=digest_of(b"{}"),
        decision={
            "id": uuid7(),
            "effect": "allow" if outcome == "done" else "deny",
            "policies": [rule],
            "policy_set": policy_set,
        },
        body=body,
    )


def _expect(holds: object, field: str, got: object, expected: str) -> None:
    if not holds:
        raise InvalidInput(
            f"A leaf's {field} is {got!r}, expected {expected}.", next_step="Correct what the operation records."
        )


def canonical(value: Mapping[str, object]) -> bytes:
    """The one spelling of a JSON object of text, whole numbers, lists and objects.

    Raises InvalidInput naming the field that holds anything else.
    """
    _check(value, "$", 0)
    return _written(value)


def _written(value: "Mapping[str, object] | Leaf") -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:  # text with half a surrogate pair has no UTF-8 form
        raise InvalidInput(
            f"A leaf cannot be written as UTF-8: {error}.", next_step="Record text that is valid Unicode."
        ) from error


_encoder = msgspec.json.Encoder(order="sorted")


def _check(value: object, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _unfit(path, "is nested too deeply", f"Nest at most {MAX_DEPTH} levels.")
    # Exact types: True is an int to Python, and a subclass may print itself differently. Most items are text, which
    # needs no look: a leaf is made on every change.
    kind = type(value)
    if isinstance(value, dict):
        _check_items(value, path, depth)
    elif kind in (list, tuple):
        for position, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
            if type(item) is not str:
                _check(item, f"{path}[{position}]", depth + 1)
    elif kind is int:
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:  # type: ignore[operator]
            raise _unfit(path, f"is {value}", "Beyond ±(2^53 - 1), record a number as text.")
    elif kind is not str:
        raise _unfit(path, f"is {value!r} ({kind.__name__})", "Record fractions with leaf.number, and leave out null.")


def _check_items(value: dict[object, object], path: str, depth: int) -> None:
    for key, item in value.items():
        if type(key) is not str or not key.isascii():
            raise _unfit(path, f"has the key {key!r}", "Use ASCII text as keys.")
        if type(item) is not str:
            _check(item, f"{path}.{key}", depth + 1)


def _unfit(path: str, what: str, next_step: str) -> InvalidInput:
    return InvalidInput(
        f"A leaf holds text, whole numbers, lists and objects only: {path} {what}.",
        next_step=next_step,
        details={"field": path},
    )


def encode(leaf: Leaf) -> bytes:
    """The leaf's canonical bytes: what is hashed. Raises InvalidInput if the body cannot be written or is too long."""
    # The same bytes as those of `canonical` over its fields, in half the time: `order` sorts a struct's fields too.
    for field in Leaf.__struct_fields__:
        value = getattr(leaf, field)
        if type(value) is not str:
            _check(value, f"$.{field}", 1)
    data = _written(leaf)
    if len(data) > MAX_BYTES:
        raise InvalidInput(
            f"The leaf of {leaf.kind} has {len(data)} bytes, at most {MAX_BYTES} fit.",
            next_step="Store the long part as an object and record its digest.",
        )
    return data


def decode(data: bytes) -> Leaf:
    """Reads `encode`. Raises IntegrityError for bytes that are no leaf, or not in its one spelling."""
    try:
        leaf = _decoder.decode(data)
        same = encode(leaf) == data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidInput) as error:
        raise IntegrityError(f"These bytes are no ledger leaf: {error}", next_step=_VERIFY) from error
    if not same:
        raise IntegrityError("A ledger leaf is not in its canonical spelling.", next_step=_VERIFY)
    return leaf


_decoder = msgspec.json.Decoder(Leaf)
_VERIFY = "Run macadam ledger verify to see which leaves are not what was recorded."


def number(x: float) -> str:
    """A fraction as text for a leaf's body: the shortest decimal that reads back as the same 64-bit float.

    Not-a-number and infinities become 'nan', 'inf' and '-inf': a metric that is undefined is evidence too.
    """
    return repr(float(x))
