"""Prediction records: what goes in comes out, and what is no record is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError, InvalidInput
from macadam.journal.record import VERSION, Prediction, decode, encode
from macadam.values import instant, utc_now, uuid7

_scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
_features = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def prediction(**changes: object) -> Prediction:
    fields: dict[str, object] = {
        "id": uuid7(),
        "at": instant(utc_now()),
        "project": "flights",
        "endpoint": "delay",
        "variant": "champion",
        "version": "model:delay-risk@3",
        "model_digest": "sha256:" + "a" * 64,
        "deployment": uuid7(),
        "actor": "service:web",
        "inputs": {"flight": 1545, "carrier": "UA"},
        "features": {"distance": 1400.0, "carrier": "UA", "age": None},
        "output": {"late": 0.25},
        "outcome": "ok",
        "stages_us": {"predict": 12},
    }
    return msgspec.convert(fields | changes, Prediction)


@given(
    inputs=st.dictionaries(st.text(), _scalars | st.lists(_scalars, max_size=3), max_size=4),
    features=st.dictionaries(st.text(), _features, max_size=4),
)
def test_a_record_reads_back_as_it_was_written(inputs: dict[str, object], features: dict[str, object]) -> None:
    finite = msgspec.json.decode(msgspec.json.encode(inputs))
    record = prediction(inputs=finite, features=features)
    assert decode(encode(record)) == record


def test_the_same_record_always_has_the_same_bytes() -> None:
    record = prediction()
    assert encode(decode(encode(record))) == encode(record)


@pytest.mark.parametrize("outcome", ["ok", "degraded:previous-version", "error:model-failed"])
def test_the_three_kinds_of_outcome_are_taken(outcome: str) -> None:
    assert prediction(outcome=outcome).outcome == outcome


def test_another_outcome_is_refused() -> None:
    with pytest.raises(InvalidInput, match="outcome"):
        Prediction(**msgspec.structs.asdict(prediction()) | {"outcome": "fine"})


def test_a_time_in_another_spelling_is_refused() -> None:
    with pytest.raises(InvalidInput, match="time"):
        Prediction(**msgspec.structs.asdict(prediction()) | {"at": "2026-11-21T07:00:00Z"})


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"v":1,"id":3}'])
def test_bytes_that_are_no_record_are_an_integrity_error(payload: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a prediction record"):
        decode(payload)


def test_a_record_of_a_later_version_is_refused_with_the_remedy() -> None:
    with pytest.raises(IntegrityError, match="Upgrade"):
        decode(encode(prediction(v=VERSION + 1)))
