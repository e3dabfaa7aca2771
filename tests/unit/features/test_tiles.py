import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError
from macadam.features import tiles
from macadam.features.tiles import SLACK, Prefix

LENGTHS = (1, 3, 10)
rows = st.lists(st.tuples(st.integers(-50, 400), st.integers(-9, 9)), max_size=60)


def packed(given_rows, *, trim=False):
    prefix = Prefix()
    for tile, value in given_rows:
        prefix = Prefix(prefix.pack())  # as if each came in a push of its own
        assert prefix.add(tile, 1.0, float(value))
        if trim:
            prefix.trim(max(LENGTHS))
    return prefix.pack()


@given(rows, st.integers(-60, 410))
def test_a_window_is_the_sum_of_its_tiles_whatever_the_order_of_rows(given_rows, edge):
    wanted = []
    for length in LENGTHS:
        inside = [v for t, v in given_rows if edge - length <= t < edge]
        wanted.append((float(len(inside)), float(sum(inside))))
    assert tiles.windows(packed(given_rows), edge, LENGTHS) == wanted


@given(rows, st.integers(0, SLACK - 1))
def test_folding_what_is_old_changes_no_recent_window(given_rows, ago):
    if not given_rows:
        return
    ordered = sorted(given_rows)
    edge = ordered[-1][0] + 1 - ago
    assert tiles.windows(packed(ordered, trim=True), edge, LENGTHS) == tiles.windows(packed(ordered), edge, LENGTHS)


def test_a_window_that_reaches_into_what_was_folded_is_unknown_not_wrong():
    prefix = Prefix.of([0, 50, 400], [1.0, 2.0, 3.0], [5.0, 6.0, 7.0])
    prefix.trim(10)
    value = prefix.pack()
    assert tiles.windows(value, 401, (10, 349, 350, 351)) == [(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), None]
    assert tiles.windows(value, 50, (10,)) == [None]


def test_a_row_older_than_every_window_is_told_apart():
    prefix = Prefix.of([0, 50, 400], [1.0, 2.0, 3.0], [5.0, 6.0, 7.0])
    prefix.trim(10)
    assert not prefix.add(50, 1.0, 1.0)
    assert prefix.add(51, 1.0, 1.0)


def test_an_entity_without_rows_has_empty_windows():
    assert tiles.windows(None, 5, (1, 2)) == [(0.0, 0.0), (0.0, 0.0)]
    assert tiles.windows(b"", 5, (1, 2)) == [(0.0, 0.0), (0.0, 0.0)]


def test_a_damaged_value_is_not_changed_any_further():
    with pytest.raises(IntegrityError, match="stored window value has"):
        Prefix(Prefix.of([1], [1.0], [1.0]).pack()[:-1])
