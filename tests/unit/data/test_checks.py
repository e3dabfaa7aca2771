"""Checking batches: which rows go where, with which reasons, and what blocks publishing."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.data import checks, contracts
from macadam.errors import ContractInvalid, InvalidInput, SourceInvalid

HEAD = "apiVersion: v3.2.0\nkind: DataContract\nid: c\nversion: 1.0.0\nstatus: active\n"
NA = "customProperties: [{property: nullTokens, value: ['', NA]}]\n"


def compiled(properties, quality="[]", more=""):
    schema = f"schema:\n  - name: t\n    properties: [{properties}]\n    quality: {quality}\n"
    return checks.compile_table(contracts.parse(HEAD + more + schema), "t")


def strings(**columns):
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def reasons(outcome):
    return {row["_row"]: row["_reasons"] for row in outcome.quarantined.to_pylist()}


ORDERS = (
    "{name: id, logicalType: integer, required: true, unique: true},"
    "{name: size, logicalType: number, logicalTypeOptions: {minimum: 0, exclusiveMaximum: 10}},"
    "{name: code, logicalType: string, logicalTypeOptions: {pattern: '^A', maxLength: 3}, enum: [{value: A1}, {value: A2}]},"
    "{name: at, logicalType: timestamp}"
)


def test_each_failing_row_says_all_its_reasons_and_keeps_its_raw_values():
    rows = strings(
        id=["1", "x", "", "1", "1.5"],
        size=["9.5", "10", "-1", "1", "NaN"],
        code=["A1", "B999", "A3", "A2", ""],
        at=["2013-01-01T10:00:00Z", "2013-01-01", "soon", "2013-07-01 12:00:00+02", "NA"],
    )
    outcome = compiled(ORDERS, more=NA).run(rows, text=True, first_row=100)
    assert reasons(outcome) == {
        101: ["id.type", "size.exclusiveMaximum", "code.maxLength", "code.pattern", "code.enum"],
        102: ["id.required", "size.minimum", "code.enum", "at.type"],
        103: ["id.unique"],
        104: ["id.type", "size.type"],
    }
    assert outcome.quarantined.select(["id", "at"]).to_pylist()[1] == {"id": "", "at": "soon"}
    assert outcome.good.to_pylist() == [
        {"id": 1, "size": 9.5, "code": "A1", "at": datetime(2013, 1, 1, 10, tzinfo=UTC)}
    ]


def test_a_batch_without_faults_and_an_empty_one_come_through():
    check = compiled(ORDERS)
    rows = strings(id=["1", "2"], size=["1", None], code=["A1", None], at=["2013-01-01T10:00:00Z", None])
    for batch in (rows, rows.slice(0, 0), check.run(rows).good):
        outcome = check.run(batch)
        assert outcome.good.num_rows == batch.num_rows
        assert outcome.good.schema == check.schema
        assert outcome.quarantined.num_rows == 0
        assert all(result.passed for result in outcome.report.rules)


def test_the_first_good_row_keeps_a_key_that_an_earlier_bad_row_had():
    rows = strings(id=["7", "7", "7"], size=["-1", "1", "2"], code=["A1"] * 3, at=[None] * 3)
    assert reasons(compiled(ORDERS).run(rows)) == {0: ["size.minimum"], 2: ["id.unique"]}


def test_a_key_that_is_published_already_is_quarantined():
    rows = strings(id=["7", "8"], size=["1", "1"], code=["A1"] * 2, at=[None] * 2)
    check = compiled(ORDERS)
    outcome = check.run(rows, existing=pa.table({"id": [8, 9]}))
    assert reasons(outcome) == {1: ["id.unique.published"]}
    with pytest.raises(InvalidInput, match="lack id"):
        check.run(rows, existing=pa.table({"nr": [8]}))


def test_keys_of_several_columns_with_a_null_are_never_equal():
    check = compiled(
        "{name: a, logicalType: string}, {name: b, logicalType: integer}",
        "[{metric: duplicateValues, mustBe: 0, arguments: {properties: [a, b]}, name: pair}]",
    )
    rows = pa.table({"a": ["x", "x", "x", None, None], "b": [1, 2, 1, 1, 1]})
    assert reasons(check.run(rows)) == {2: ["pair"]}


def test_a_warning_is_counted_and_keeps_the_row():
    check = compiled(
        "{name: a, logicalType: integer}", "[{type: sql, query: a < 10, mustBe: true, name: small, severity: warning}]"
    )
    outcome = check.run(pa.table({"a": [1, 99, None]}))
    assert outcome.good.num_rows == 3
    (small,) = [result for result in outcome.report.rules if result.rule == "small"]
    assert (small.failed, small.passed, outcome.report.blocked) == (1, False, ())


def test_a_row_expression_sees_typed_values_and_null_passes():
    check = compiled(
        "{name: a, logicalType: integer}, {name: b, logicalType: integer}",
        "[{type: sql, query: a <= b -- ordered, mustBe: true, name: ordered}]",
    )
    assert reasons(check.run(strings(a=["9", "9", None], b=["10", "8", "1"]))) == {1: ["ordered"]}


@pytest.mark.parametrize(
    ("rule", "blocked"),
    [
        ("{metric: rowCount, mustBeGreaterThan: 2}", "t.rowCount: got 2, expected > 2"),
        ("{metric: rowCount, mustBeBetween: [1, 2]}", ""),
        (
            "{metric: nullValues, arguments: {properties: [a]}, unit: percent, mustBeLessThan: 20}",
            "got 25.0, expected < 20 percent",
        ),
        ("{metric: nullValues, arguments: {properties: [a]}, mustBeLessOrEqualTo: 1}", ""),
        ("{metric: duplicateValues, arguments: {properties: [b]}, mustBeLessThan: 2}", "got 2, expected < 2"),
        ("{metric: duplicateValues, arguments: {properties: [b]}, mustBeLessThan: 2, severity: warning}", ""),
        ("{type: sql, query: 'SELECT max(a) FROM ${table}', mustBe: 3}", "got 2, expected = 3"),
        (
            "{metric: invalidValues, arguments: {properties: [b], validValues: [5]}, mustBeLessThan: 1}",
            "got 1, expected < 1",
        ),
    ],
)
def test_a_table_rule_blocks_publishing_with_what_was_got_and_expected(rule, blocked):
    check = compiled(
        "{name: a, logicalType: integer}, {name: b, logicalType: integer, logicalTypeOptions: {maximum: 5}}",
        f"[{rule}]",
    )
    report = check.run(pa.table({"a": [1, 2, None, 3], "b": [5, 5, 6, 5]}).slice(0, 4)).report
    if "rowCount" in rule or "SELECT" in rule:
        report = check.run(pa.table({"a": [1, 2, 3], "b": [5, 5, 6]})).report  # the third row is quarantined
    assert blocked in " ".join(report.blocked)
    assert bool(report.blocked) == bool(blocked)


def test_freshness_is_measured_against_the_given_instant_only():
    more = "slaProperties: [{property: latency, value: 1, unit: d, element: t.at}]\n"
    check = compiled("{name: at, logicalType: timestamp}", more=more)
    rows = strings(at=["2013-01-01T00:00:00Z"])
    assert check.run(rows).report.rules[-1].note == "no present instant was given"
    assert not check.run(rows, at=datetime(2013, 1, 2, tzinfo=UTC)).report.blocked
    assert "got 86401.0" in check.run(rows, at=datetime(2013, 1, 2, 0, 0, 1, tzinfo=UTC)).report.blocked[0]
    assert check.run(rows.slice(0, 0), at=datetime(2013, 1, 2, tzinfo=UTC)).report.blocked
    with pytest.raises(InvalidInput, match="no time zone"):
        check.run(rows, at=datetime(2013, 1, 2))  # noqa: DTZ001


def test_wall_clock_times_are_read_in_the_contracts_zone_also_across_the_summer_change():
    check = compiled("{name: at, logicalType: timestamp, logicalTypeOptions: {defaultTimezone: America/New_York}}")
    texts = ["2013-01-01 12:00:00", "2013-07-01 12:00:00", "2013-07-01T12:00:00Z"]
    hours = [row.hour for row in check.run(strings(at=texts)).good.column("at").to_pylist()]
    assert hours == [17, 16, 12]


@pytest.mark.parametrize(
    "bound", ["2013-01-01T12:00:00.000", "2013-01-01 12:00", "2013-01-01T17:00:00.000Z", "2013-01-01T19:00+02"]
)
def test_a_bound_without_a_zone_is_in_the_contracts_zone_and_one_with_a_zone_in_its_own(bound):
    options = f"{{defaultTimezone: America/New_York, minimum: '{bound}'}}"
    check = compiled(f"{{name: at, logicalType: timestamp, logicalTypeOptions: {options}}}")
    outcome = check.run(strings(at=["2013-01-01T16:59:59Z", "2013-01-01T17:00:00Z"]))
    assert reasons(outcome) == {0: ["at.minimum"]}


def test_the_standards_date_formats_are_understood():
    check = compiled("{name: d, logicalType: date, logicalTypeOptions: {format: dd.MM.yyyy, minimum: '2013-01-02'}}")
    outcome = check.run(strings(d=["02.01.2013", "2013-01-03", "01.01.2013"]))
    assert outcome.good.column("d").to_pylist() == [datetime(2013, 1, 2).date()]  # noqa: DTZ001
    assert reasons(outcome) == {1: ["d.type"], 2: ["d.minimum"]}


@pytest.mark.parametrize(
    ("properties", "quality", "words"),
    [
        ("{name: a}", "[{type: sql, query: a + +, mustBe: true, name: odd}]", "rule odd is not understood"),
        ("{name: a}", "[{type: sql, query: b > 1, mustBe: true, name: odd}]", "rule odd is not understood"),
        ("{name: a}", "[{type: sql, query: 'true) , (true', mustBe: true, name: odd}]", "rule odd is not"),
        ("{name: a}", "[{type: sql, query: 'SELECT 1; SELECT 2', mustBe: 1, name: odd}]", "rule odd is not"),
        (
            "{name: a}",
            "[{type: sql, query: \"SELECT count(*) FROM read_text('/etc/passwd')\", mustBe: 1, name: odd}]",
            "odd",
        ),
        ("{name: a, logicalTypeOptions: {pattern: '('}}", "[]", "rule a.pattern is not understood"),
        ("{name: a, logicalType: date, logicalTypeOptions: {minimum: soon}}", "[]", "rule a.minimum is not understood"),
        ("{name: a, logicalType: date, logicalTypeOptions: {format: QQQ}}", "[]", "has 'Q'"),
        ("{name: a}", "[{metric: invalidValues, mustBe: 0, arguments: {properties: [a]}}]", "which values are valid"),
    ],
)
def test_a_rule_that_cannot_run_is_refused_when_compiled(properties, quality, words):
    with pytest.raises(ContractInvalid) as caught:
        compiled(properties, quality)
    assert words in str(caught.value)


def test_a_contract_cannot_read_files_or_this_process(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with pytest.raises(ContractInvalid):
        compiled("{name: a}", f"[{{type: sql, query: \"SELECT count(*) FROM '{secret}'\", mustBe: 1}}]")
    with pytest.raises(ContractInvalid):
        compiled("{name: a}", "[{type: sql, query: SELECT count(*) FROM rows, mustBe: 1}]")


@pytest.mark.parametrize("query", ["SELECT {}", "CASE WHEN a IS NULL THEN (SELECT {}) > 0 END"])
def test_a_rule_that_does_not_end_is_refused_in_time(query, monkeypatch):
    monkeypatch.setattr(checks, "COMPILE_SECONDS", 0.3)
    endless = query.format("sum(x.range * y.range) FROM range(100000000) x, range(100000000) y")
    with pytest.raises(ContractInvalid, match=r"longer than 0\.3 s"):
        compiled("{name: a}", f"[{{type: sql, query: '{endless}', mustBe: true}}]")


def test_a_rule_that_would_take_gigabytes_to_parse_is_refused_unparsed():
    query = "SELECT " + "(" * 6000 + "1" + ")" * 6000
    with pytest.raises(ContractInvalid, match="12,008 characters"):
        compiled("{name: a}", f"[{{type: sql, query: '{query}', mustBe: 1}}]")


def test_rows_of_the_wrong_shape_are_refused_with_the_columns_named():
    with pytest.raises(SourceInvalid, match=r"missing: size, code, at; surplus: nr"):
        compiled(ORDERS).run(strings(id=["1"], nr=["2"]))


def test_more_rules_than_one_mask_holds_are_all_told_apart():
    names = [f"c{number}" for number in range(75)]
    check = compiled(", ".join(f"{{name: {name}, logicalType: integer, required: true}}" for name in names))
    rows = strings(
        **{name: [None if number == place else "1" for place in range(75)] for number, name in enumerate(names)}
    )
    assert reasons(check.run(rows)) == {number: [f"{name}.required"] for number, name in enumerate(names)}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.sampled_from(["1", "2", "3", "x", "2.5", "-4", "99999999999999999999"])),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_every_row_is_published_or_quarantined_with_a_reason_and_none_is_both(drawn):
    rows = strings(id=[value for value, _ in drawn], flag=[str(flag).lower() for _, flag in drawn])
    outcome = LAW.run(rows)
    report = outcome.report
    assert report.rows_in == len(drawn) == report.published + report.quarantined
    assert all(reasons(outcome).values())
    expected, seen = set(), set()
    for number, (value, flag) in enumerate(drawn):
        whole = value is not None and value.lstrip("-").isdigit() and abs(int(value)) < 2**63
        if whole and int(value) >= 0 and flag and int(value) not in seen:
            seen.add(int(value))
            expected.add(number)
    assert set(range(len(drawn))) - set(reasons(outcome)) == expected


LAW = compiled(
    "{name: id, logicalType: integer, primaryKey: true, logicalTypeOptions: {minimum: 0}}, {name: flag, logicalType: boolean}",
    "[{type: sql, query: flag, mustBe: true, name: flagged}]",
)


def test_row_numbers_hold_in_a_batch_that_is_checked_by_several_threads_and_comes_in_chunks():
    count, bad, repeated = 400_000, {7, 122_880, 399_999}, {200_001}
    numbers = [n if n not in repeated else 5 for n in range(count)]
    rows = pa.table({"id": pa.array(numbers), "flag": pa.array([n not in bad for n in range(count)])})
    chunked = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 250_000), rows.slice(250_001)])
    outcome = LAW.run(chunked, first_row=10)
    assert reasons(outcome) == {n + 10: ["flagged"] for n in bad} | {200_011: ["id.unique"]}
    assert outcome.quarantined.column("id").to_pylist() == [7, 122_880, 5, 399_999]
    kept = [n for place, n in enumerate(numbers) if place not in bad | repeated]
    assert outcome.good.column("id").to_pylist() == kept
