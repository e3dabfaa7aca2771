"""What a project may write as an expression: one value from one row, the same whenever and wherever it is computed.

DuckDB parses the text; everything that looks at other rows, other tables, the clock or chance is refused, because a
training set and a pushed row would then see different values.
"""

import atexit
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from macadam.errors import InvalidInput
from macadam.features.define import Table
from macadam.lazy import lazy

if TYPE_CHECKING:
    import duckdb
else:
    duckdb = lazy("duckdb")

LONGEST = 10_000
"""Characters of an expression."""
_CLASSES = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION",
    "OPERATOR", "TYPE",
}  # fmt: skip
# Macros of DuckDB that are plain functions of their arguments.
_MACROS = {"nullif", "fmod", "fdiv", "round_even", "roundbankers"}


@functools.lru_cache(maxsize=1)
def _parser() -> "duckdb.DuckDBPyConnection":
    # One for the process, used through cursors: opening a database takes 10 ms.
    atexit.register(_parser.cache_clear)  # duckdb complains of connections that outlive the interpreter's modules
    return duckdb.connect()


@functools.lru_cache(maxsize=1)
def _consistent() -> frozenset[str]:
    """Names of scalar functions whose value depends on their arguments only, in every overload."""
    with _parser().cursor() as connection:
        rows = connection.execute(
            "SELECT function_name, bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')"
            " FROM duckdb_functions() GROUP BY 1"
        ).fetchall()
    return frozenset({name for name, good in rows if good}) | _MACROS


@functools.lru_cache(maxsize=4096)
def columns(expression: str) -> frozenset[str]:
    """The names of the columns that an expression reads, in lower case.

    Raises InvalidInput if it does not parse or is not a plain function of one row.
    """
    used = set()
    for node in _nodes(_parsed(expression)):
        kind = node.get("class")
        if not isinstance(kind, str):
            continue
        if kind not in _CLASSES:
            raise _refused(expression, f"{kind.lower()} is not allowed")
        if kind == "FUNCTION" and str(node["function_name"]).lower() not in _consistent():
            raise _refused(expression, f"the function {node['function_name']} is not a fixed function of one row")
        if kind == "COLUMN_REF":
            names = node["column_names"]
            name = str(names[0]).lower() if isinstance(names, list) else ""
            if name.startswith("current_") or name in {"localtime", "localtimestamp"}:
                raise _refused(expression, f"{name} depends on when it is asked")
            used.add(name)
    return frozenset(used)


def derived_in_order(table: Table) -> dict[str, str]:
    """The derived columns, each after those it reads. Raises InvalidInput if they read each other in a circle."""
    waiting = {name.lower(): (name, text) for name, text in sorted(table.derive.items())}
    ordered: dict[str, str] = {}
    while waiting:
        ready = [n for n, (_, text) in waiting.items() if not columns(text) & waiting.keys()]
        if not ready:
            raise InvalidInput(
                f"The derived columns {', '.join(waiting)} of table {table.name!r} read each other in a circle.",
                next_step="Let each be computed from stored columns in the end.",
            )
        for name in ready:
            original, text = waiting.pop(name)
            ordered[original] = text
    return ordered


def base_columns(table: Table, expression: str) -> frozenset[str]:
    """The columns of the stored table that an expression reads, through derived ones. Raises InvalidInput."""
    derived = {name.lower(): text for name, text in derived_in_order(table).items()}
    found: set[str] = set()
    waiting = list(columns(expression))
    resolved: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in resolved:
            continue
        resolved.add(name)
        if name in derived:
            waiting += columns(derived[name])
        else:
            found.add(name)
    return frozenset(found)


def same(one: str, other: str) -> bool:
    """Says whether two expressions are the same text but for white space."""
    return " ".join(one.split()) == " ".join(other.split())


def _parsed(expression: str) -> object:
    if len(expression) > LONGEST:  # DuckDB's parser takes some kilobytes for each bracket
        raise _refused(f"{expression[:80]}…", f"it is longer than {LONGEST} characters")
    if not expression.strip():
        raise _refused(expression, "it is empty")
    with _parser().cursor() as connection:
        row = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT ({expression}\n)"]).fetchone()
    if row is None:
        raise _refused(expression, "it does not parse")
    answer: dict[str, object] = msgspec.json.decode(row[0])
    if answer["error"]:
        raise _refused(expression, str(answer.get("error_message", "it does not parse")))
    statements = answer["statements"]
    if not isinstance(statements, list) or len(statements) != 1:
        raise _refused(expression, "it is more than one statement")
    node = statements[0]["node"]
    if node["type"] != "SELECT_NODE" or len(node["select_list"]) != 1 or node["from_table"]["type"] != "EMPTY":
        raise _refused(expression, "it is more than one value")
    return node["select_list"]


def _nodes(tree: object) -> Iterator[dict[str, object]]:
    if isinstance(tree, dict):
        yield tree
        for part in tree.values():
            yield from _nodes(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _refused(expression: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"The expression {expression!r} cannot be a feature: {why}.",
        next_step="Write DuckDB SQL over the columns of one row, without subqueries, aggregates, windows or clocks.",
        details={"expression": expression},
    )
