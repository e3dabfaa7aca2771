import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam import values
from macadam.errors import InvalidInput
from macadam.values import Money, Ref


def test_a_reference_reads_what_it_writes() -> None:
    for text in ("table:flights@4213", "model:delay-risk", "segment:gateway-1/0001.seg", "training-set_x:a@b"):
        if "-" in text.partition(":")[0]:
            continue
        assert str(Ref.parse(text)) == text


@given(
    st.from_regex(r"[a-z][a-z_]{0,30}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,50}", fullmatch=True),
    st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9._:-]{1,50}", fullmatch=True)),
)
def test_any_reference_survives_being_written_and_read(kind: str, name: str, version: str) -> None:
    ref = Ref(kind=kind, name=name, version=version)
    assert Ref.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text", ["", "model", "Model:a", "model:", ":a", "model:a b", "model:a@", "model:ä", "model:a@b@c"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    if text == "model:a@":
        assert Ref.parse(text) == Ref(kind="model", name="a")
        return
    with pytest.raises(InvalidInput, match="not a reference"):
        Ref.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("20ms", 0.02), ("30s", 30), ("5m", 300), ("1h", 3600), ("28d", 2419200), ("2w", 1209600)]
)
def test_durations_read_with_their_unit(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "1.5h", "5 m", "5y"])
def test_durations_without_a_whole_number_and_a_unit_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a duration"):
        values.parse_duration(text)


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1)), st.integers(-840, 840))  # noqa: DTZ001 - the strategy wants naive bounds
def test_an_instant_survives_being_written_and_read_from_any_zone(naive: datetime, minutes: int) -> None:
    at = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert values.parse_instant(values.instant(at)) == at
    assert values.instant(at).endswith("Z")


@given(st.lists(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1)), min_size=2, max_size=5))  # noqa: DTZ001 - see above
def test_written_instants_sort_like_the_instants(naive: list[datetime]) -> None:
    at = [n.replace(tzinfo=UTC) for n in naive]
    assert sorted(map(values.instant, at)) == [values.instant(a) for a in sorted(at)]


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00"])
def test_times_without_a_zone_or_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        values.parse_instant(text)


def test_ids_are_version_7_distinct_and_sorted_also_across_threads() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into.extend(values.uuid7() for _ in range(2000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [id_ for into in made for id_ in into]
    assert len(set(everything)) == 8000
    for into in made:
        assert into == sorted(into)
    assert all(id_[14] == "7" and id_[19] in "89ab" for id_ in everything)


def test_money_is_exact_and_names_its_currency() -> None:
    assert str(Money(micros=1_234_500)) == "1.23 USD"
    assert str(Money(micros=-1_234_567_890_000)) == "-1,234,567.89 USD"
    assert [str(Money(micros=m)) for m in (0, 45, 12_345, 554_700, 994_999, 999_999)] == [
        "0.00 USD",
        "0.000045 USD",
        "0.0123 USD",
        "0.5547 USD",
        "0.995 USD",
        "1.00 USD",
    ]
    with pytest.raises(InvalidInput, match="not a currency"):
        Money(micros=1, currency="dollars")


def test_a_digest_names_its_algorithm() -> None:
    assert values.digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
def test_an_instant_whose_year_cannot_be_written_in_utc_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="from 1 to 9999"):
        values.parse_instant(text)
