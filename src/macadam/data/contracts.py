"""Reads Open Data Contract Standard v3 documents into frozen `Contract`s.

The document is validated against the standard's own JSON schema first, so each complaint names a path, what
was got and what is expected. How a rule is run is decided in `rules`; nothing here touches data.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from macadam.data.types import (
    Column,
    Comparison,
    Contract,
    Limits,
    LogicalType,
    Metric,
    Operator,
    Rule,
    ServiceLevel,
    Severity,
    TableContract,
)
from macadam.errors import ContractInvalid, TooLarge
from macadam.lazy import lazy
from macadam.values import digest_of

if TYPE_CHECKING:
    import jsonschema_rs
    import yaml
else:
    jsonschema_rs = lazy("jsonschema_rs")
    yaml = lazy("yaml")

MAX_BYTES = 1_048_576  # the standard's own full example has 10 kB
MAX_NODES = 100_000  # aliases can unfold a small file into a very large one
MAX_DEPTH = 50
LONGEST_SQL = 10_000  # characters: DuckDB's parser takes kilobytes for each bracket
SHOWN_PROBLEMS = 5
SCHEMA_FILE = Path(__file__).with_name("odcs-v3.2.0.schema.json")  # bitol-io/open-data-contract-standard, Apache-2.0
NEXT_STEP = "Correct the contract and check it again; the standard is at https://bitol-io.github.io."

_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_OPERATORS: dict[str, Operator] = {
    "mustBe": "=",
    "mustNotBe": "!=",
    "mustBeGreaterThan": ">",
    "mustBeGreaterOrEqualTo": ">=",
    "mustBeLessThan": "<",
    "mustBeLessOrEqualTo": "<=",
    "mustBeBetween": "between",
    "mustNotBeBetween": "not between",
}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31_557_600}
_UNITS = {"second": "s", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w", "yr": "y", "year": "y"}
_SELECT = re.compile(r"^\s*(select|with)\b", re.IGNORECASE)


def parse(text: str | bytes, *, origin: str = "the contract") -> Contract:
    """Parses and validates an ODCS v3 document (YAML or JSON).

    origin: how to name it in errors, such as its path. Raises ContractInvalid, TooLarge.
    """
    document = _load(text, origin)
    _validate(document, origin)
    return _contract(document, origin)


def parse_file(path: Path) -> Contract:
    """Parses a contract file. Raises ContractInvalid, also if it cannot be read, and TooLarge."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ContractInvalid(
            f"The contract {path} cannot be read: {error.strerror}.", next_step="Check the path in macadam.yaml."
        ) from error
    return parse(data, origin=str(path))


def table(contract: Contract, name: str) -> TableContract:
    """Finds a table of a contract by its name or physical name. Raises ContractInvalid, listing what there is."""
    for candidate in contract.tables:
        if name in {candidate.name, candidate.physical_name}:
            return candidate
    raise ContractInvalid(
        f"The contract {contract.id} has no table {name!r}.",
        next_step=f"Choose one of: {', '.join(t.name for t in contract.tables) or '(it has none)'}.",
    )


# Reading


@cache
def _loader() -> type:
    """A safe YAML loader that keeps dates as text, as JSON would, and refuses a key that is given twice."""

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own attribute)
            first: [(tag, pattern) for tag, pattern in found if tag != _TIMESTAMP_TAG]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            names = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if names.count(key.value) > 1:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
            return dict(super().construct_mapping(node, deep=deep))

    return Loader


def _load(text: str | bytes, origin: str) -> dict[str, Any]:
    size = len(text)
    if size > MAX_BYTES:
        raise TooLarge(
            f"{origin} has {size:,} bytes; a contract may have {MAX_BYTES:,}.",
            next_step="Split it into one contract per table.",
        )
    try:
        document = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ContractInvalid(
            f"{origin} is not YAML{where}: {problem}.", next_step="Correct that line and check again."
        ) from error
    if not isinstance(document, dict):
        raise ContractInvalid(
            f"{origin} is {_kind(document)}; expected a mapping with apiVersion, kind, id and version.",
            next_step=NEXT_STEP,
        )
    _require_bounded(document, origin)
    return document


def _require_bounded(document: object, origin: str) -> None:
    """Walks the unfolded document; raises before an alias bomb or a cycle can cost anything."""
    stack, seen = [(document, 0)], 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise TooLarge(
                f"{origin} unfolds to more than {MAX_NODES:,} values or {MAX_DEPTH} levels.",
                next_step="Remove its YAML aliases.",
            )
        if isinstance(node, dict):
            bad = next((key for key in node if not isinstance(key, str)), None)
            if bad is not None:
                raise ContractInvalid(f"{origin} has the key {bad!r}; keys are text.", next_step="Quote it.")
            stack.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, depth + 1) for child in node)


@cache
def _validator() -> "jsonschema_rs.Validator":
    schema = msgspec.json.decode(SCHEMA_FILE.read_bytes(), type=dict[str, Any])
    # In v3.2.0 "if logicalType is map, then map is required" also holds where logicalType, which is optional, is
    # absent; a property with only a name would be refused.
    for clause in schema["$defs"]["SchemaBaseProperty"]["allOf"]:
        condition = clause.get("if", {})
        for one in condition.get("anyOf", [condition]):
            one.setdefault("required", ["logicalType"])
    return jsonschema_rs.validator_for(schema)


def _validate(document: dict[str, Any], origin: str) -> None:
    version = document.get("apiVersion")
    if not (isinstance(version, str) and version.startswith("v3.")):
        raise ContractInvalid(
            f"{origin}: apiVersion: got {version!r}, expected v3.0.0 to v3.2.0.",
            next_step="Set apiVersion to the version of the standard that the contract is written in.",
        )
    problems = [
        {"path": _path(error.instance_path), "problem": error.message[:400]}
        for error in _validator().iter_errors(document)
    ]
    if problems:
        shown = "; ".join(f"{p['path']}: {p['problem']}" for p in problems[:SHOWN_PROBLEMS])
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ContractInvalid(
            f"{origin} does not follow ODCS {version}: {shown}{more}.",
            next_step=NEXT_STEP,
            details={"problems": problems},
        )


def _path(steps: "list[str | int]") -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.lstrip(".") or "(top)"


def _kind(value: object) -> str:
    return {"NoneType": "empty", "list": "a list", "str": "text"}.get(type(value).__name__, "a single value")


# Building


def _contract(document: Mapping[str, Any], origin: str) -> Contract:
    levels = tuple(
        ServiceLevel(
            property=level["property"],
            value=level["value"],
            unit=level.get("unit") or "",
            element=level.get("element") or document.get("slaDefaultElement") or "",
        )
        for level in document.get("slaProperties") or ()
    )
    tables = tuple(_table(entry, levels, origin, n) for n, entry in enumerate(document.get("schema") or ()))
    _require_distinct([t.name for t in tables], f"{origin}: schema")
    return Contract(
        id=document["id"],
        version=document["version"],
        status=document.get("status") or "",
        api_version=document["apiVersion"],
        name=document.get("name") or "",
        digest=digest_of(msgspec.json.encode(document, order="sorted")),
        tables=tables,
        service_levels=levels,
        null_tokens=_null_tokens(document, origin),
    )


def _null_tokens(document: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """The custom property `nullTokens`: the standard has no word for what spells 'no value' in a text source."""
    for custom in document.get("customProperties") or ():
        if custom.get("property") == "nullTokens":
            value = custom.get("value")
            if not (isinstance(value, list) and all(isinstance(token, str) for token in value)):
                raise ContractInvalid(
                    f"{origin}: customProperties nullTokens: got {value!r}, expected a list of texts.",
                    next_step="Write for example: value: ['', 'NA'].",
                )
            return tuple(value)
    return ("",)


def _table(entry: Mapping[str, Any], levels: tuple[ServiceLevel, ...], origin: str, number: int) -> TableContract:
    path = f"{origin}: schema[{number}]"
    properties = entry.get("properties") or ()
    columns = tuple(_column(p, path) for p in properties)
    _require_distinct([c.name for c in columns], f"{path}.properties")
    rules: list[Rule] = []
    unchecked: list[str] = []
    for column, quality in _qualities(entry):
        rule = _rule(entry["name"], column, quality, path)
        if rule is None:
            unchecked.append(quality.get("name") or f"{column or entry['name']}.{quality.get('type', 'text')}")
        else:
            rules.append(rule)
    rules += _freshness(entry, columns, levels)
    rules = _with_distinct_names(rules)
    _require_known_columns(rules, columns, path)
    return TableContract(
        name=entry["name"],
        physical_name=entry.get("physicalName") or "",
        columns=columns,
        rules=tuple(rules),
        unchecked=tuple(unchecked),
    )


def _qualities(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for column in entry.get("properties") or ():
        for quality in column.get("quality") or ():
            yield column["name"], quality
    for quality in entry.get("quality") or ():
        yield "", quality


def _column(entry: Mapping[str, Any], path: str) -> Column:
    position = entry.get("primaryKeyPosition", -1)
    return Column(
        name=entry["name"],
        logical_type=cast("LogicalType", entry.get("logicalType") or "string"),
        physical_type=entry.get("physicalType") or "",
        required=bool(entry.get("required")),
        unique=bool(entry.get("unique")),
        key_position=max(position, 1) if entry.get("primaryKey") else 0,
        classification=entry.get("classification") or "",
        subject=_names_subject(entry, path),
        limits=_limits(entry.get("logicalTypeOptions") or {}),
        allowed=tuple(_text(choice["value"]) for choice in entry.get("enum") or ()),
    )


def _names_subject(entry: Mapping[str, Any], path: str) -> bool:
    """The custom property `subject`: the standard has no word for the column that says whom a row is about."""
    for custom in entry.get("customProperties") or ():
        if custom.get("property") == "subject":
            if not isinstance(custom.get("value"), bool):
                raise ContractInvalid(
                    f"{path}.{entry['name']}: customProperties subject: got {custom.get('value')!r}, expected true.",
                    next_step="Write value: true at the column that names the person.",
                )
            return bool(custom["value"])
    return False


def _limits(options: Mapping[str, Any]) -> Limits:
    return Limits(
        minimum=options.get("minimum"),
        exclusive_minimum=options.get("exclusiveMinimum"),
        maximum=options.get("maximum"),
        exclusive_maximum=options.get("exclusiveMaximum"),
        multiple_of=options.get("multipleOf"),
        min_length=options.get("minLength"),
        max_length=options.get("maxLength"),
        pattern=options.get("pattern") or "",
        format=options.get("format") or "",
        default_timezone=options.get("defaultTimezone") or "UTC",
        min_items=options.get("minItems"),
        max_items=options.get("maxItems"),
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rule(table_name: str, column: str, quality: Mapping[str, Any], path: str) -> Rule | None:
    """Reads one quality entry; None for prose and for other vendors' rules, which nothing here can run."""
    severity: Severity = "warning" if quality.get("severity") in {"warning", "info"} else "error"
    common: dict[str, Any] = {
        "severity": severity,
        "dimension": quality.get("dimension") or "",
        "description": quality.get("description") or "",
    }
    if quality.get("type") == "sql":
        return _sql_rule(table_name, column, quality, common)
    if "metric" not in quality:
        return None
    metric = cast("Metric", quality["metric"])
    comparison = _comparison(quality)
    arguments = quality.get("arguments") or {}
    columns = tuple(arguments.get("properties") or ((column,) if column else ()))
    if not columns and metric != "rowCount":
        raise ContractInvalid(
            f"{path}.quality: {metric} on a table needs arguments.properties.",
            next_step="Name the columns there, or put the rule under a property.",
        )
    # "None may be missing" decides for each row; "at most 5% may" is about the table.
    per_row = metric != "rowCount" and comparison.operator == "=" and comparison.values == (0,)
    return Rule(
        name=quality.get("name") or f"{'+'.join(columns) or table_name}.{metric}",
        metric=metric,
        level="row" if per_row else "table",
        columns=columns,
        comparison=comparison,
        percent=quality.get("unit") == "percent",
        tokens=_tokens(metric, arguments),
        pattern=arguments.get("pattern") or "",
        **common,
    )


def _tokens(metric: str, arguments: Mapping[str, Any]) -> tuple[str | None, ...]:
    values = arguments.get("missingValues" if metric == "missingValues" else "validValues") or ()
    return tuple(None if value is None else _text(value) for value in values)


def _sql_rule(table_name: str, column: str, quality: Mapping[str, Any], common: Mapping[str, Any]) -> Rule:
    query = str(quality["query"]).strip().rstrip(";")
    if len(query) > LONGEST_SQL:
        raise ContractInvalid(
            f"{table_name}.quality: a query has {len(query):,} characters, at most {LONGEST_SQL:,} are parsed.",
            next_step="Write several rules.",
        )
    for spelling, value in (("table", table_name), ("object", table_name), ("column", column), ("property", column)):
        quoted = '"' + value.replace('"', '""') + '"'
        query = query.replace("${" + spelling + "}", quoted).replace("{" + spelling + "}", quoted)
    comparison = _comparison(quality)
    select = bool(_SELECT.match(query))
    if not select and comparison != Comparison(operator="=", values=(True,)):
        raise ContractInvalid(
            f"{table_name}.quality: the expression {query!r} is compared with '{comparison}'.",
            next_step="A row rule is a boolean expression with mustBe: true; otherwise write a SELECT of one value.",
        )
    return Rule(
        name=quality.get("name") or f"{column or table_name}.sql",
        metric="query" if select else "expression",
        level="table" if select else "row",
        columns=(column,) if column else (),
        sql=query,
        comparison=comparison,
        **common,
    )


def _comparison(quality: Mapping[str, Any]) -> Comparison:
    name = next(key for key in _OPERATORS if key in quality)  # the schema demands exactly one
    value = quality[name]
    return Comparison(operator=_OPERATORS[name], values=tuple(value) if isinstance(value, list) else (value,))


def _freshness(
    entry: Mapping[str, Any], columns: tuple[Column, ...], levels: tuple[ServiceLevel, ...]
) -> Iterator[Rule]:
    """ODCS calls the age of the newest row `latency`; many contracts write `freshness`."""
    names = {entry["name"], entry.get("physicalName")}
    for level in levels:
        table_name, _, column = level.element.partition(".")
        known = any(c.name == column for c in columns)
        if level.property in {"latency", "freshness", "ly", "fr"} and table_name in names and known:
            seconds = _seconds(level)
            if seconds is not None:
                yield Rule(
                    name=f"{column}.{level.property}",
                    metric="freshness",
                    level="table",
                    columns=(column,),
                    comparison=Comparison(operator="<=", values=(seconds,)),
                    max_age=seconds,
                    dimension="timeliness",
                )


def _seconds(level: ServiceLevel) -> float | None:
    unit = level.unit.strip().lower().rstrip("s") or "s"
    factor = _SECONDS.get(_UNITS.get(unit, unit))
    try:
        return None if factor is None or level.value is None else float(level.value) * factor
    except ValueError:
        return None


# Consistency that a JSON schema cannot express


def _require_distinct(names: list[str], path: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractInvalid(f"{path} names {', '.join(twice)} twice.", next_step="Give each its own name.")


def _with_distinct_names(rules: list[Rule]) -> list[Rule]:
    """Numbers rules that would share a name, so that a reason names one rule."""
    seen: dict[str, int] = {}
    distinct = []
    for rule in rules:
        seen[rule.name] = seen.get(rule.name, 0) + 1
        count = seen[rule.name]
        distinct.append(rule if count == 1 else msgspec.structs.replace(rule, name=f"{rule.name}#{count}"))
    return distinct


def _require_known_columns(rules: list[Rule], columns: tuple[Column, ...], path: str) -> None:
    known = {c.name for c in columns}
    for rule in rules:
        unknown = [name for name in rule.columns if name not in known]
        if unknown:
            raise ContractInvalid(
                f"{path}.quality: the rule {rule.name} names {', '.join(unknown)}, which is no property.",
                next_step=f"Use one of: {', '.join(sorted(known)) or '(the table has none)'}.",
            )
