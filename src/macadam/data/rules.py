"""Turns a contract's table into DuckDB SQL: one SELECT that types each column and sets one bit per broken rule.

Pure text: no data, no connection. `checks` runs it. The bits of a row say all its reasons at once, so reasons
are spelled out for the failing rows only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from macadam.data.types import Bound, Column, Rule, Severity, TableContract
from macadam.errors import ContractInvalid

BITS = 60  # per mask column: a sum of that many powers of two stays inside BIGINT
INTEGER_TYPES = {
    "i8": "TINYINT",
    "i16": "SMALLINT",
    "i32": "INTEGER",
    "i64": "BIGINT",
    "u8": "UTINYINT",
    "u16": "USMALLINT",
    "u32": "UINTEGER",
}
# What a column is cast to, and the SQL type of its literals.
SQL_TYPES = {
    "string": "VARCHAR",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
    "time": "TIME",
    "number": "DOUBLE",
    "integer": "BIGINT",
    "boolean": "BOOLEAN",
    "object": "VARCHAR",  # JSON text
    "array": "VARCHAR",
    "map": "VARCHAR",
    "vector": "VARCHAR",
}
NESTED = frozenset({"object", "array", "map", "vector"})
# JDK DateTimeFormatter letters, which ODCS uses, in strptime's; longest first.
_FORMAT_LETTERS = (
    ("yyyy", "%Y"),
    ("SSSSSS", "%f"),
    ("SSS", "%g"),
    ("XXX", "%z"),
    ("MM", "%m"),
    ("dd", "%d"),
    ("HH", "%H"),
    ("mm", "%M"),
    ("ss", "%S"),
    ("X", "%z"),
    ("Z", "%z"),
    ("'T'", "T"),
)
_ZONE = re.compile(r"([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$")  # at the end of a time of day

# How a column arrives: as text to be parsed, already of its type (`float`: but NaN may be among it), as a wall
# clock without a zone, or of another type that has to be cast.
Arrival = Literal["text", "typed", "float", "naive", "other"]
KEPT = frozenset({"typed", "float"})  # handed on without a copy


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A condition that is true for a row that breaks a rule.

    role: `row` marks the row; `measure` is only counted, for a table rule with a threshold.
    """

    rule: str
    condition: str
    severity: Severity
    role: Literal["row", "measure"] = "row"


class UniqueSet(msgspec.Struct, frozen=True, kw_only=True):
    """Columns whose values together may occur once."""

    rule: str
    columns: tuple[str, ...]
    severity: Severity = "error"


def name(text: str) -> str:
    """Quotes an identifier."""
    return '"' + text.replace('"', '""') + '"'


def literal(value: object) -> str:
    """Quotes a text or writes a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


def checks_of(table: TableContract) -> list[Check]:
    """All conditions for single rows, in the order of the columns and then of the rules."""
    found = [check for column in table.columns for check in _column_checks(column)]
    columns = {column.name: column for column in table.columns}
    for rule in table.rules:
        if rule.metric in {"nullValues", "missingValues", "invalidValues", "expression"}:
            role: Literal["row", "measure"] = "row" if rule.level == "row" else "measure"
            found.append(
                Check(rule=rule.name, condition=_rule_condition(rule, columns), severity=rule.severity, role=role)
            )
    return found


def unique_sets(table: TableContract) -> list[UniqueSet]:
    """The primary key, unique columns and `duplicateValues` rules that must find none."""
    found = []
    if table.key:
        found.append(UniqueSet(rule=f"{'+'.join(table.key)}.unique", columns=table.key))
    found += [
        UniqueSet(rule=f"{column.name}.unique", columns=(column.name,))
        for column in table.columns
        if column.unique and table.key != (column.name,)
    ]
    found += [
        UniqueSet(rule=rule.name, columns=rule.columns, severity=rule.severity)
        for rule in table.rules
        if rule.metric == "duplicateValues" and rule.level == "row"
    ]
    return found


def select(
    table: TableContract,
    checks: Sequence[Check],
    arrivals: Mapping[str, Arrival],
    null_tokens: Sequence[str],
    source: str,
) -> str:
    """The one pass: typed columns (only those that change), then mask columns `_mask0`, `_mask1` …"""
    outer = [name(c.name) for c in table.columns if arrivals[c.name] not in KEPT]
    for number in range(0, max(len(checks), 1), BITS):
        bits = [
            f"CASE WHEN {check.condition} THEN {1 << place}::BIGINT ELSE 0::BIGINT END"
            for place, check in enumerate(checks[number : number + BITS])
        ]
        outer.append(f"{' + '.join(bits) or '0::BIGINT'} AS _mask{number // BITS}")
    typed = ", ".join(_typed(column, arrivals[column.name]) for column in table.columns)
    read = ", ".join(_read(column, arrivals[column.name], null_tokens) for column in table.columns)
    # S608: identifiers and literals are quoted; a rule's own SQL runs where nothing but the batch can be reached.
    return f"SELECT {', '.join(outer)} FROM (SELECT {typed} FROM (SELECT {read} FROM {source}))"  # noqa: S608


def cast_type(column: Column) -> str:
    """The SQL type that a column has once it is published."""
    if column.logical_type == "integer":
        return INTEGER_TYPES.get(column.limits.format, "BIGINT")
    return SQL_TYPES[column.logical_type]


# Typing


def _read(column: Column, arrival: Arrival, null_tokens: Sequence[str]) -> str:
    quoted = name(column.name)
    if arrival == "text" and null_tokens:
        tokens = ", ".join(literal(token) for token in null_tokens)
        return f"CASE WHEN {quoted} IN ({tokens}) THEN NULL ELSE {quoted} END AS {quoted}"
    return quoted


def _typed(column: Column, arrival: Arrival) -> str:
    """The typed column and, beside it, whether a value was there that is not of the type."""
    quoted, bad = name(column.name), name(_bad(column))
    if arrival == "typed":
        return f"{quoted}, false AS {bad}"
    if arrival == "float":  # already DOUBLE: only NaN and infinities are no numbers, and their rows are not kept
        return f"{quoted}, NOT isfinite({quoted}) AS {bad}"
    value = _cast(column, arrival)
    return f"{value} AS {quoted}, {quoted} IS NOT NULL AND ({value}) IS NULL AS {bad}"


def _bad(column: Column) -> str:
    return f"_bad:{column.name}"


def _cast(column: Column, arrival: Arrival) -> str:
    quoted, target = name(column.name), cast_type(column)
    if column.logical_type in NESTED:
        return (
            f"CASE WHEN json_valid({quoted}) THEN {quoted} END" if arrival == "text" else f"to_json({quoted})::VARCHAR"
        )
    if column.logical_type == "timestamp":
        return _cast_timestamp(column, arrival)
    if arrival == "text" and column.limits.format and column.logical_type in {"date", "time"}:
        return f"TRY_CAST(try_strptime({quoted}, {literal(_strptime(column))}) AS {target})"
    if column.logical_type == "integer":
        # A cast alone would round 1.5 to 2.
        whole = f"regexp_full_match({quoted}, '[+-]?[0-9]+')" if arrival == "text" else f"{quoted} = round({quoted})"
        return f"CASE WHEN {whole} THEN TRY_CAST({quoted} AS {target}) END"
    if column.logical_type == "number":
        return f"CASE WHEN isfinite(TRY_CAST({quoted} AS DOUBLE)) THEN TRY_CAST({quoted} AS DOUBLE) END"
    return f"TRY_CAST({quoted} AS {target})"


def _cast_timestamp(column: Column, arrival: Arrival) -> str:
    quoted, zone = name(column.name), literal(column.limits.default_timezone)
    if arrival == "naive":
        return f"CAST({quoted} AS TIMESTAMP) AT TIME ZONE {zone}"
    if arrival != "text":
        return f"TRY_CAST({quoted} AS TIMESTAMPTZ)"
    if column.limits.format:
        pattern = _strptime(column)
        parsed = f"try_strptime({quoted}, {literal(pattern)})"
        return parsed if "%z" in pattern else f"({parsed}) AT TIME ZONE {zone}"
    # A zone is Z, +hh or +hh:mm at the end; without one the wall clock is the contract's zone.
    zoned = f"regexp_matches({quoted}, '([Zz]|[+-][0-9]{{2}}(:?[0-9]{{2}})?)$') AND length({quoted}) > 10"
    return (
        f"CASE WHEN {zoned} THEN TRY_CAST({quoted} AS TIMESTAMPTZ) "
        f"ELSE TRY_CAST({quoted} AS TIMESTAMP) AT TIME ZONE {zone} END"
    )


def _strptime(column: Column) -> str:
    rest, found = column.limits.format, ""
    while rest:
        letters = next(((jdk, ours) for jdk, ours in _FORMAT_LETTERS if rest.startswith(jdk)), None)
        if letters is None and rest[0].isalpha():
            raise ContractInvalid(
                f"{column.name}: the format {column.limits.format!r} has {rest[0]!r}, which is not understood.",
                next_step="Use yyyy MM dd HH mm ss SSS and XXX, or leave the format out for ISO 8601.",
            )
        jdk, ours = letters or (rest[0], rest[0])
        found, rest = found + ours, rest[len(jdk) :]
    return found


# Conditions: each is true for a row that breaks the rule; NULL counts as not broken, as in SQL's own CHECK


def _column_checks(column: Column) -> Iterator[Check]:
    for suffix, condition in _column_conditions(column):
        yield Check(rule=f"{column.name}.{suffix}", condition=condition, severity="error")


def _column_conditions(column: Column) -> Iterator[tuple[str, str]]:
    quoted, limits = name(column.name), column.limits
    yield "type", name(_bad(column))
    if column.required or column.key_position:
        yield "required", f"{quoted} IS NULL AND NOT {name(_bad(column))}"
    for suffix, operator, bound in (
        ("minimum", "<", limits.minimum),
        ("exclusiveMinimum", "<=", limits.exclusive_minimum),
        ("maximum", ">", limits.maximum),
        ("exclusiveMaximum", ">=", limits.exclusive_maximum),
    ):
        if bound is not None:
            yield suffix, f"{quoted} {operator} {_bound(column, bound)}"
    for suffix, measure, operator, limit in (
        ("multipleOf", f"{quoted} % {limits.multiple_of}", "<>", None if limits.multiple_of is None else 0),
        ("minLength", f"length({quoted})", "<", limits.min_length),
        ("maxLength", f"length({quoted})", ">", limits.max_length),
        ("minItems", f"json_array_length({quoted})", "<", limits.min_items),
        ("maxItems", f"json_array_length({quoted})", ">", limits.max_items),
    ):
        if limit is not None:
            yield suffix, f"{measure} {operator} {limit}"
    if limits.pattern:
        yield "pattern", f"NOT regexp_matches({quoted}, {literal(limits.pattern)})"
    if column.allowed:
        yield "enum", f"NOT {_among(quoted, column.allowed)}"


def _bound(column: Column, bound: Bound) -> str:
    if column.logical_type in {"number", "integer"}:
        return literal(bound)
    if column.logical_type == "timestamp" and not _ZONE.search(str(bound)[len("2013-01-01") :]):
        return f"(TIMESTAMP {literal(bound)} AT TIME ZONE {literal(column.limits.default_timezone)})"
    return f"{SQL_TYPES[column.logical_type]} {literal(bound)}"


def _among(quoted: str, values: Sequence[str]) -> str:
    return f"{quoted}::VARCHAR IN ({', '.join(literal(v) for v in values)})"


def _rule_condition(rule: Rule, columns: Mapping[str, Column]) -> str:
    if rule.metric == "expression":
        return f"NOT ({rule.sql}\n)"  # the line break ends a trailing comment
    return " OR ".join(f"({_metric_condition(rule, columns[column])})" for column in rule.columns)


def _metric_condition(rule: Rule, column: Column) -> str:
    quoted = name(column.name)
    texts = tuple(token for token in rule.tokens if token is not None)
    if rule.metric == "nullValues":
        return f"{quoted} IS NULL"
    if rule.metric == "missingValues":
        return f"{quoted} IS NULL" + (f" OR {_among(quoted, texts)}" if texts else "")
    broken = [f"NOT {_among(quoted, texts)}"] if texts else []
    if rule.tokens and None not in rule.tokens:
        broken.append(f"{quoted} IS NULL")
    if rule.pattern:
        broken.append(f"NOT regexp_matches({quoted}, {literal(rule.pattern)})")
    if not broken:
        raise ContractInvalid(
            f"The rule {rule.name} does not say which values are valid.",
            next_step="Add arguments.validValues or arguments.pattern.",
        )
    return " OR ".join(broken)
