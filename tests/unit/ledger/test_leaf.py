"""Leaves: one spelling, equal to RFC 8785 for what they may hold, and nothing else is accepted."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger import leaf

DIGEST = "sha256:" + "0" * 64
UUID = "01934567-89ab-7cde-8f01-23456789abcd"
FIELDS: dict[str, Any] = {
    "id": UUID,
    "at": "2026-11-21T07:00:00.000000Z",
    "kind": "models.register_version",
    "outcome": "done",
    "actor": "principal:alice",
    "project": "flights",
    "subject": "model:delay-risk@7",
    "uses": ["run:r1"],
    "request": DIGEST,
    "decision": {"effect": "allow", "policies": ["developers"], "policy_set": DIGEST, "id": UUID},
    "body": {"artifact": DIGEST, "rows": 12},
}


def made(**changes: Any) -> leaf.Leaf:
    return leaf.Leaf(**(FIELDS | changes))


def test_a_leaf_has_one_spelling_that_anyone_can_rebuild() -> None:
    assert leaf.encode(made()).decode() == (
        '{"actor":"principal:alice","at":"2026-11-21T07:00:00.000000Z",'
        f'"body":{{"artifact":"{DIGEST}","rows":12}},'
        f'"decision":{{"effect":"allow","id":"{UUID}","policies":["developers"],"policy_set":"{DIGEST}"}},'
        f'"id":"{UUID}","kind":"models.register_version","outcome":"done","project":"flights",'
        f'"request":"{DIGEST}","subject":"model:delay-risk@7","uses":["run:r1"],"v":1}}'
    )


PLAIN = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**53) + 1, 2**53 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner),
    max_leaves=12,
)
BODIES = st.dictionaries(st.text(st.characters(max_codepoint=127)), PLAIN, max_size=5)


@given(BODIES)
def test_canonical_equals_rfc_8785_for_what_a_leaf_may_hold(body: dict[str, Any]) -> None:
    # For ASCII keys, text and whole numbers JCS is this: sorted keys, JSON.stringify's escapes, no spaces.
    expected = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    assert leaf.canonical(body) == expected


def test_every_character_is_escaped_as_rfc_8785_says() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\ud7ff\ue000\U0010ffff"
    body = leaf.canonical({"t": text})
    assert b'"\\u0000\\u0001' in body
    assert b"\\b\\t\\n\\u000b\\f\\r\\u000e" in body
    assert b"\\u001f" in body
    assert "\x7f\x80".encode() in body
    assert json.loads(body) == {"t": text}


@given(BODIES)
def test_reading_a_leaf_gives_what_was_written(body: dict[str, Any]) -> None:
    written = made(body=body)
    assert leaf.decode(leaf.encode(written)) == written


@given(BODIES, st.text(st.characters(exclude_categories=["Cs"])))
def test_a_leaf_is_written_as_the_canonical_object_of_its_fields(body: dict[str, Any], project: str) -> None:
    written = made(body=body, project=project)
    assert leaf.encode(written) == leaf.canonical(msgspec.structs.asdict(written))


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD"


def test_text_of_another_class_is_no_text_of_a_leaf() -> None:
    with pytest.raises(InvalidInput, match="Shouting"):
        leaf.encode(made(project=Shouting("flights")))
    with pytest.raises(InvalidInput, match="bool"):
        leaf.encode(made(v=True))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (1.5, "fraction"),
        (None, "None"),
        (True, "True"),
        (2**53, "9007199254740992"),
        (-(2**53), "-9007199254740992"),
        (b"x", "bytes"),
        ({"é": 1}, "key"),
        ({1: 1}, "key"),
        ({"deep": [{"er": [0, None]}]}, r"\$\.body\.x\.deep\[0\]\.er\[1\]"),
        ("\ud800", "UTF-8"),
    ],
)
def test_what_a_leaf_cannot_hold_is_named(value: object, named: str) -> None:
    with pytest.raises(InvalidInput, match=named if named != "fraction" else "float"):
        leaf.encode(made(body={"x": value}))


def test_a_body_that_is_nested_without_end_is_refused() -> None:
    body: dict[str, Any] = {}
    body["x"] = body
    with pytest.raises(InvalidInput, match="nested too deeply"):
        leaf.encode(made(body=body))


def test_a_leaf_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInput, match="65535"):
        leaf.encode(made(body={"x": "y" * 65_536}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("id", "01934567-89ab-4cde-8f01-23456789abcd"),
        ("id", UUID.upper()),
        ("at", "2026-11-21T07:00:00Z"),
        ("at", "2026-02-30T07:00:00.000000Z"),
        ("kind", "register"),
        ("outcome", "maybe"),
        ("actor", "alice"),
        ("actor", "anonymous"),
        ("subject", "not a ref"),
        ("uses", ["model"]),
        ("uses", ["run:r1\n"]),
        ("request", "sha256:0"),
        ("decision", {}),
        ("decision", FIELDS["decision"] | {"effect": "deny"}),
        ("decision", FIELDS["decision"] | {"policy_set": ""}),
        ("decision", FIELDS["decision"] | {"policies": "all"}),
        ("decision", FIELDS["decision"] | {"id": "1"}),
        ("decision", FIELDS["decision"] | {"more": "1"}),
    ],
)
def test_a_leaf_that_says_something_impossible_is_not_built(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{field}|is not a time"):
        made(**{field: value})


def test_a_denied_call_of_an_unknown_caller_can_be_recorded() -> None:
    decision = {"effect": "deny", "policies": [], "policy_set": "", "id": UUID}
    denied = made(outcome="denied", actor="anonymous", subject="model:-", uses=[], decision=decision)
    assert leaf.decode(leaf.encode(denied)) == denied


GOOD = leaf.encode(made())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        GOOD + b"\n",
        GOOD + GOOD,
        b" " + GOOD,
        GOOD.replace(b'"v":1', b'"v":1.0'),
        GOOD.replace(b'"v":1', b'"v":1,"w":1'),
        GOOD.replace(b'"v":1', b'"v":1,"v":1'),
        GOOD.replace(b'"rows":12', b'"rows":true'),
        GOOD.replace(b'"rows":12', b'"rows":-0'),
        GOOD.replace(b'"rows":12', b'"rows":12,"artifact":1'),
        GOOD.replace(b"flights", b"flight\\u0073"),
        GOOD.replace(b"flights", b"flight\xc3"),
        GOOD.replace(b"flights", b"flight\\ud800"),
        GOOD.replace(b'"project":"flights",', b""),
    ],
)
def test_bytes_that_are_not_the_one_spelling_of_a_leaf_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        leaf.decode(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_never_reads_as_the_same_leaf(position: int, by: int) -> None:
    data = bytearray(GOOD)
    data[position] ^= by
    try:
        read = leaf.decode(bytes(data))
    except IntegrityError:
        return
    assert read != leaf.decode(GOOD)


@given(st.floats())
def test_a_number_as_text_reads_back_exactly(x: float) -> None:
    text = leaf.number(x)
    assert math.isnan(x) if text == "nan" else float(text) == x
    leaf.canonical({"x": text})


def test_a_leaf_does_not_change() -> None:
    with pytest.raises(AttributeError):
        made().project = "other"  # type: ignore[misc]
    assert msgspec.structs.replace(made(), project="other").project == "other"
