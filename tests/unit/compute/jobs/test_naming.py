"""Names and quantities that clusters take."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.compute.jobs.naming import LABEL, cores, dns_label, label_value, parse_quantity, size
from macadam.errors import InvalidInput

ANY_TEXT = st.text(min_size=1, max_size=200)
LIKE_NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,80}(-h[0-9a-f]{12})?", fullmatch=True)


@given(ANY_TEXT | LIKE_NAMES, st.integers(20, LABEL))
def test_every_name_becomes_a_dns_label_within_its_limit(text: str, limit: int) -> None:
    made = dns_label(text, limit=limit)
    assert len(made) <= limit
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)


@given(st.sets(ANY_TEXT | LIKE_NAMES, min_size=2, max_size=30), st.integers(20, LABEL))
def test_two_names_never_become_one(texts: set[str], limit: int) -> None:
    assert len({dns_label(text, limit=limit) for text in texts}) == len(texts)
    assert len({label_value(text) for text in texts}) == len(texts)


@given(ANY_TEXT | LIKE_NAMES)
def test_making_a_made_name_again_does_not_give_the_same_name_to_both(text: str) -> None:
    made = dns_label(text)
    assert made == text or dns_label(made) != made


def test_a_long_name_keeps_its_readable_part() -> None:
    first, second = "train-" + "a" * 70 + "-1", "train-" + "a" * 70 + "-2"
    assert dns_label(first).startswith("train-aaaa")
    assert dns_label(first) != dns_label(second)
    assert dns_label("01a1fe95-6bfe-7bd3-8d12-530c06374c61") == "01a1fe95-6bfe-7bd3-8d12-530c06374c61"
    assert dns_label("delay_risk") != dns_label("delay-risk") == "delay-risk"


@given(st.text(max_size=200))
def test_every_text_becomes_a_label_value(text: str) -> None:
    made = label_value(text)
    assert len(made) <= LABEL
    assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", made)


@given(st.integers(0, 10**9))
def test_thousandths_of_cores_survive_the_way_through_a_quantity(milli: int) -> None:
    assert parse_quantity(cores(milli)) * 1000 == milli


@given(st.integers(0, 2**50) | st.integers(0, 2**20).map(lambda n: n << 20))
def test_bytes_survive_the_way_through_a_quantity(count: int) -> None:
    assert parse_quantity(size(count)) == count


def test_quantities_are_written_as_people_write_them() -> None:
    assert [cores(500), cores(2000), size(512 << 20), size(80 << 30), size(0)] == ["500m", "2", "512Mi", "80Gi", "0"]


@pytest.mark.parametrize("text", ["1e3", "-1", "1.5", "1Mo", "", "m", "2Gi\n"])
def test_what_is_no_quantity_of_ours_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_quantity(text)


def test_nothing_is_less_than_nothing() -> None:
    for write in (cores, size):
        with pytest.raises(InvalidInput):
            write(-1)
    with pytest.raises(InvalidInput):
        dns_label("")
