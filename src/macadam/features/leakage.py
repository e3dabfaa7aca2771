"""Refuses features that know what could not be known at the event's time, naming the feature.

Every column of a table becomes known at some instant: the one `known` lists it under, else the table's `known_at`.
From that follow the rules. On the definitions alone: an input is never a column of the label nor one that nobody
declared as known early. On the data: no input is known after its event, no view counts a row before the columns it
reads were known, no view finds the event's own outcome at the event's time, and no single feature tells the labels
apart without error. What is declared wrongly everywhere, and consistently, no rule here can see.
"""

# ruff: noqa: S608 - names are quoted and expressions parsed (`expressions.columns`) before they meet SQL

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from macadam.errors import ChecksFailed, InvalidInput
from macadam.features import expressions, relations
from macadam.features.define import FeatureService, Table, TableView, WindowAggregate, known_at

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# Fewer rows of a class than this, and perfect separation may be chance.
_ENOUGH = 50
# A number that predicts a numeric label this well is the label in another unit.
_SAME = 0.999999
# A category that occurs less often than this, on average, may be pure by chance.
_REPEATS = 10
_TWO = 2  # classes


def instants_of(table: Table, service: FeatureService) -> list[str]:
    """The expressions of every instant that the rules compare for a table."""
    listed = [*table.known, table.known_at]
    if table == service.table:
        listed += [service.event_time, service.known_label]
    return [i for i in dict.fromkeys(listed) if i]


def column_instants(table: Table, columns: Iterable[str]) -> list[str]:
    """When the columns become known, without doubles."""
    listed = {c.lower(): instant for instant, names in table.known.items() for c in names}
    return list(dict.fromkeys(listed.get(c, table.known_at) for c in sorted(columns)))


def check(service: FeatureService) -> None:
    """The rules that need no data. Raises InvalidInput."""
    table = service.table
    labels = expressions.base_columns(table, service.label)
    early = {c.lower() for names in table.known.values() for c in names}
    early -= {c for c in early if expressions.same(column_instants(table, [c])[0], table.known_at)}
    for name in service.inputs:
        columns = expressions.base_columns(table, relations.name(name))
        if outcome := sorted(columns & labels):
            raise _refused(name, f"is made from {', '.join(outcome)}, which the label is made from too")
        if late := sorted(columns - early):
            raise _refused(
                name,
                f"is made from {', '.join(late)}, which table {table.name!r} does not declare as known before"
                f" {table.known_at}",
            )
    for view in service.table_views:
        for text in (*relations.value_expressions(view), *map(relations.name, view.entity.keys), known_at(view)):
            expressions.base_columns(view.table, text or "0")


def check_instants(
    connection: "duckdb.DuckDBPyConnection", service: FeatureService, relation: Callable[[Table], str]
) -> None:
    """The rules about instants, on the rows. The table `spine` and the stored tables are there. Raises ChecksFailed."""
    rows = relation(service.table)
    for name in service.inputs:
        columns = expressions.base_columns(service.table, relations.name(name))
        for instant in column_instants(service.table, columns):
            _none_later(connection, rows, instant, service.event_time, f"The input {name!r}", name)
    labels = expressions.base_columns(service.table, service.label)
    for instant in column_instants(service.table, labels):
        _none_later(connection, rows, instant, service.known_label, "The label", "label")
    early = connection.sql("SELECT count(*) FROM spine WHERE _label_known <= _at").fetchall()[0][0]
    if early:
        raise ChecksFailed(
            f"{early} events have a label that was known at their event time already, so there is nothing to predict.",
            next_step=f"Check event_time ({service.event_time}) and when the label is known ({service.known_label}).",
        )
    for view in service.table_views:
        if known_at(view):
            for instant in column_instants(view.table, _columns(view)):
                what = f"View {view.name!r}"
                _none_later(connection, relation(view.table), instant, known_at(view), what, view.name)
        if view.table == service.table and _columns(view) & labels:
            what = f"View {view.name!r}, made from what the label is made from,"
            _none_later(connection, rows, service.known_label, known_at(view), what, view.name)


def check_own_row(connection: "duckdb.DuckDBPyConnection", service: FeatureService, view: TableView) -> None:
    """No event may find its own later columns. `spine` and the view's `source` are there. Raises ChecksFailed."""
    if view.table != service.table or not _has_late_columns(service, view):
        return
    visible = "q._known <= p._at"
    if isinstance(view, WindowAggregate):
        tiles = [relations.floor(c, view.tile_us) for c in ("q._known", "p._at")]
        visible = f"{tiles[0]} < {tiles[1]}"
    query = f"SELECT count(*) FROM spine p JOIN source q ON p._rid = q._rid WHERE {visible}"
    own = connection.sql(query).fetchall()[0][0]
    if own:
        raise ChecksFailed(
            f"View {view.name!r} lets {own} events see their own row, whose columns are known only after the event.",
            next_step=f"Check its known_at, which is {known_at(view)}.",
            details={"feature": view.name, "rows": own},
        )


def check_separation(connection: "duckdb.DuckDBPyConnection", service: FeatureService, rows: "pa.Table") -> None:
    """No single feature may give the label away. Raises ChecksFailed."""
    connection.register("frame", rows)
    classes = connection.sql("SELECT label, count(*) FROM frame GROUP BY 1 ORDER BY 1 LIMIT 3").fetchall()
    for name in service.feature_names:
        if name in service.perfect:
            continue
        column = relations.name(name)
        number = rows.schema.field(name).type == "double"
        if len(classes) == _TWO and min(n for _, n in classes) >= _ENOUGH:
            found = _separates(connection, column, classes[1][0], number=number)
        else:
            found = number and len(classes) > _TWO and _repeats(connection, column, rows)
        if found:
            raise ChecksFailed(
                f"Feature {name!r} alone tells every label, as only the outcome itself could.",
                next_step=f"Remove it; if it is honest, list it in `perfect` of service {service.name!r}.",
                details={"feature": name},
            )
    connection.unregister("frame")


def _separates(connection: "duckdb.DuckDBPyConnection", column: str, positive: object, *, number: bool) -> bool:
    """Says whether the values, or their being missing, split two classes without error."""
    query = (
        f"SELECT count({column}) FILTER (label = $1), count({column}) FILTER (label <> $1),"
        " count(*) FILTER (label = $1), count(*) FILTER (label <> $1) FROM frame"
    )
    here, there, all_here, all_there = connection.execute(query, [positive]).fetchall()[0]
    if (here, there) in {(all_here, 0), (0, all_there)}:
        return True
    if min(here, there) < _ENOUGH:
        return False
    if number:
        ends = (
            f"SELECT min({column}) FILTER (label = $1), max({column}) FILTER (label = $1),"
            f" min({column}) FILTER (label <> $1), max({column}) FILTER (label <> $1) FROM frame"
        )
        low, high, other_low, other_high = connection.execute(ends, [positive]).fetchall()[0]
        return bool(high < other_low or other_high < low)
    # A category that repeats, yet never with both labels. One that hardly repeats separates by chance.
    mixed = (
        f"SELECT count(*) FILTER (kinds > 1), count(*), sum(n) FROM (SELECT count(DISTINCT label) AS kinds,"
        f" count(*) AS n FROM frame WHERE {column} IS NOT NULL GROUP BY {column})"
    )
    both, values, n = connection.execute(mixed).fetchall()[0]
    return bool(both == 0 and n >= _REPEATS * values)


def _repeats(connection: "duckdb.DuckDBPyConnection", column: str, rows: "pa.Table") -> bool:
    if rows.schema.field("label").type == "string":
        return False
    query = f"SELECT abs(corr({column}, label)), count({column}) FROM frame"
    strength, n = connection.execute(query).fetchall()[0]
    return strength is not None and strength > _SAME and n >= 2 * _ENOUGH


def _columns(view: TableView) -> frozenset[str]:
    texts = [*relations.value_expressions(view), *map(relations.name, view.entity.keys)]
    return frozenset().union(*(expressions.base_columns(view.table, t) for t in texts))


def _has_late_columns(service: FeatureService, view: TableView) -> bool:
    instants = column_instants(view.table, _columns(view))
    return any(expressions.same(i, view.table.known_at) or expressions.same(i, service.known_label) for i in instants)


def _none_later(
    connection: "duckdb.DuckDBPyConnection", rows: str, known: str, used: str, what: str, feature: str
) -> None:
    """Raises ChecksFailed if in some row `used` comes before `known`."""
    if expressions.same(known, used):
        return
    late, total = connection.sql(
        f"SELECT count(*) FILTER ({relations.instant(used)} < {relations.instant(known)}), count(*) FROM {rows}"
    ).fetchall()[0]
    if late:
        raise ChecksFailed(
            f"{what} uses columns at {used} that are known only at {known}: too early in {late} of {total} rows.",
            next_step="Use the later instant, or leave the feature out.",
            details={"feature": feature, "rows": late},
        )


def _refused(feature: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"The input {feature!r} {why}: it would not be there when the prediction is asked for.",
        next_step="Leave it out, or list its columns under the instant when they are known in the table's `known`.",
        details={"feature": feature},
    )
