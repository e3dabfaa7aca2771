"""Answers against records: what is missing is named, what is only unanswered is not called missing."""

from hypothesis import given
from hypothesis import strategies as st

from macadam.journal.completeness import compare, missing, of_leaf


def leaf(segment: str, **body: object) -> tuple[str, dict[str, object]]:
    return segment, {"count": 5, "answers": 5, "torn": 0, "gateway": "g", **body}


def gap(identity: str, answers: int) -> dict[str, object]:
    return {"id": identity, "first_at": "2026-01-01", "last_at": "2026-01-02", "causes": {"disk-full": answers}}


def found(*leaves: tuple[str, dict[str, object]], waiting: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    return compare([of_leaf(*one) for one in leaves], waiting)


def test_as_many_records_as_answers_is_complete() -> None:
    whole = found(leaf("segment:1"), leaf("segment:2", follows="segment:1"))
    assert (whole.faults, whole.records, whole.answers) == ((), 10, 10)


def test_more_answers_than_records_is_a_fault_and_says_how_many() -> None:
    lacking = found(leaf("segment:1", answers=7))
    assert "2 are missing" in lacking.faults[0]
    assert lacking.rows[0].missing == 2


def test_records_that_were_never_answered_and_torn_ends_are_told_but_no_fault() -> None:
    crashed = found(leaf("segment:1", answers=3, torn=12))
    assert (crashed.faults, crashed.unanswered, crashed.torn) == ((), 2, 1)


def test_a_gap_counts_once_even_if_two_segments_tell_it() -> None:
    told = found(
        leaf("segment:1", gaps=[gap("a", 4)]), leaf("segment:2", follows="segment:1", gaps=[gap("a", 4), gap("b", 1)])
    )
    assert [row.unrecorded for row in told.rows] == [4, 1]
    assert told.answers == 15
    assert len(told.faults) == 2


def test_a_gap_that_had_grown_before_it_was_told_again_counts_for_what_it_grew_by() -> None:
    told = found(leaf("segment:1", gaps=[gap("a", 4)]), leaf("segment:2", follows="segment:1", gaps=[gap("a", 7)]))
    assert [row.unrecorded for row in told.rows] == [4, 3]
    turned = found(leaf("segment:1", gaps=[gap("a", 7)]), leaf("segment:2", follows="segment:1", gaps=[gap("a", 4)]))
    assert [row.unrecorded for row in turned.rows] == [7, 0]


def test_a_segment_that_is_named_and_nowhere_is_missed_unless_it_waits() -> None:
    leaves = [leaf("segment:2", follows="segment:1"), leaf("segment:3", follows="segment:2")]
    assert "segment:1, which is gone" in found(*leaves).faults[0]
    assert found(*leaves, waiting=("segment:1",)).faults == ()
    assert missing([of_leaf(*one) for one in leaves], ()) == ["segment:1"]
    assert "2 segments say that none was before them" in found(leaf("segment:1"), leaf("segment:9")).faults[0]


plain = st.recursive(
    st.text(max_size=5) | st.integers(-5, 5) | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "causes", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["count", "answers", "torn", "gaps", "follows", "gateway"]), plain))
def test_a_leaf_that_says_nonsense_is_a_fault_or_counts_nothing(body: dict[str, object]) -> None:
    read = compare([of_leaf("segment:1", body)], ())
    numbers = isinstance(body.get("count"), int) and isinstance(body.get("answers"), int)
    assert numbers or read.faults
