"""What a project's `features.py` is written with: each feature defined once, as a value.

The same value is read three times: over published snapshots for training sets, over pushed rows for the online
store, and with a request's inputs when a prediction is asked for. Nothing here computes or imports anything heavy;
texts called *expressions* are DuckDB SQL over one row of a table, and both clocks evaluate the same text.

    flights = Table(name="flights", row_id=("time_hour", "carrier", "flight"),
                    derive={"arrived_at": "…"}, known={"scheduled_at": ("carrier", "distance")}, known_at="arrived_at")
    carrier = Entity(name="carrier", keys=("carrier",))
    carrier_late = WindowAggregate(name="carrier_late", table=flights, entity=carrier,
                                   value="arr_delay > 15", windows=("1d", "7d"))
"""

import hashlib
import re
from typing import Literal

import msgspec

from macadam.errors import InvalidInput
from macadam.features import functions
from macadam.values import digest_of, parse_duration

EVENT_TIME = "event_time"
Kind = Literal["number", "category"]
Aggregation = Literal["mean", "count", "sum"]

_IDENTIFIER = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,62}\Z")
_RESERVED = {EVENT_TIME, "label"}


class Entity(msgspec.Struct, frozen=True, kw_only=True):
    """What a value is about. keys: columns of the tables and inputs of the services that have it."""

    name: str
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        _identifier(self.name, "An entity's name")
        if not self.keys:
            raise InvalidInput(f"Entity {self.name!r} has no keys.", next_step="Name at least one key column.")
        for key in self.keys:
            _identifier(key, f"A key of entity {self.name!r}")


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A published table as features see it.

    row_id: columns that together name a row once and for all: a row pushed twice counts once.
    derive: columns computed from stored and other derived ones, as expressions; their order does not matter.
    known_at: the instant when a whole row is known, an expression; '' for facts without a time (lookups only).
    known: columns that are known earlier, by the instant when they are (an expression).
    """

    name: str
    row_id: tuple[str, ...]
    known_at: str = ""
    derive: dict[str, str] = {}
    known: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        _identifier(self.name.replace("-", "_"), "A table's name")
        if not self.row_id:
            raise InvalidInput(f"Table {self.name!r} has no row_id.", next_step="Name the columns of its primary key.")
        for column in (*self.row_id, *self.derive):
            _identifier(column, f"A column of table {self.name!r}")
        listed = [c.lower() for columns in self.known.values() for c in columns]
        if len(set(listed)) != len(listed):
            raise InvalidInput(
                f"Table {self.name!r} lists a column as known at two instants.", next_step="List each column once."
            )
        if self.known and not self.known_at:
            raise InvalidInput(
                f"Table {self.name!r} says when columns are known early, but has no known_at.",
                next_step="Say when a whole row is known.",
            )


class WindowAggregate(msgspec.Struct, frozen=True, kw_only=True, tag="window", tag_field="kind"):
    """Aggregates of a value over the last hours or days, one feature per function and window.

    At time t a window of length W covers the complete tiles in [floor(t) - W, floor(t)), where floor rounds down to
    a whole tile since 1970 in UTC, and a row belongs to the tile of its known_at. So no row counts before it was
    known, and every clock sees the same rows. Rows whose value is null or not finite are left out.

    value: expression, a number or boolean. windows: multiples of `tile`. Features: `<name>_<function>_<window>`;
    mean is null over no rows, count and sum are 0; all are null where a key is null.
    known_at: '' is the table's.
    """

    name: str
    table: Table
    entity: Entity
    value: str
    windows: tuple[str, ...]
    functions: tuple[Aggregation, ...] = ("mean",)
    tile: str = "1h"
    known_at: str = ""

    def __post_init__(self) -> None:
        _timed(self.name, self.table)
        if not self.windows or not self.functions:
            raise InvalidInput(f"View {self.name!r} has no windows or no functions.", next_step="Give one of each.")
        if self.tile_us <= 0:
            raise InvalidInput(f"View {self.name!r} has an empty tile.", next_step="Give a tile such as '1h'.")
        for window in self.windows:
            length = _microseconds(window)
            if length <= 0 or length % self.tile_us:
                raise InvalidInput(
                    f"Window {window!r} of view {self.name!r} is not a multiple of its tile {self.tile!r}.",
                    next_step="Choose windows that are whole numbers of tiles.",
                )

    @property
    def tile_us(self) -> int:
        """The length of a tile in microseconds."""
        return _microseconds(self.tile)

    @property
    def tiles(self) -> tuple[int, ...]:
        """The length of each window, in tiles."""
        return tuple(_microseconds(w) // self.tile_us for w in self.windows)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{f}_{w}" for f in self.functions for w in self.windows)


class Latest(msgspec.Struct, frozen=True, kw_only=True, tag="latest", tag_field="kind"):
    """Values of the newest row of the entity that was known at time t: the one with the largest known_at <= t.

    Of rows known at the same instant the one with the largest row id (as text) counts. columns: expressions by
    suffix, features `<name>_<suffix>`. age: adds `<name>_age`, the seconds between known_at and t.
    max_age: older rows count as none; '' is no limit. known_at: '' is the table's.
    """

    name: str
    table: Table
    entity: Entity
    columns: dict[str, str]
    age: bool = False
    max_age: str = ""
    known_at: str = ""

    def __post_init__(self) -> None:
        _timed(self.name, self.table)
        _columns(self)
        if self.age and "age" in self.columns:
            raise InvalidInput(f"View {self.name!r} has a column 'age' and age=True.", next_step="Rename the column.")
        if self.max_age:
            parse_duration(self.max_age)

    @property
    def max_age_us(self) -> int:
        """The limit in microseconds, 0 for none."""
        return _microseconds(self.max_age) if self.max_age else 0

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{c}" for c in self.columns) + ((f"{self.name}_age",) if self.age else ())


class Lookup(msgspec.Struct, frozen=True, kw_only=True, tag="lookup", tag_field="kind"):
    """Values of the entity's one row in a table of facts that do not change with time. Features `<name>_<suffix>`."""

    name: str
    table: Table
    entity: Entity
    columns: dict[str, str]

    def __post_init__(self) -> None:
        _identifier(self.name, "A view's name")
        _columns(self)
        if self.table.known_at:
            raise InvalidInput(
                f"Lookup {self.name!r} reads table {self.table.name!r}, whose rows become known at some time: a lookup"
                " would find rows from the event's future.",
                next_step="Use Latest.",
            )

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{c}" for c in self.columns)


class RequestFeature(msgspec.Struct, frozen=True, kw_only=True, tag="request", tag_field="kind"):
    """A value computed from the request, by one of the functions in `macadam.features.functions`.

    inputs: names of the service's inputs, 'event_time', or features that stand earlier in the service. () is the
    input with this feature's own name. zone: IANA time zone of the functions that read a clock.
    """

    name: str
    function: str = "number"
    inputs: tuple[str, ...] = ()
    zone: str = "UTC"

    def __post_init__(self) -> None:
        _identifier(self.name, "A request feature's name")
        functions.check(self.name, self.function, len(self.arguments), self.zone)

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.inputs or (self.name,)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name,)


TableView = WindowAggregate | Latest | Lookup
View = WindowAggregate | Latest | Lookup | RequestFeature


class FeatureService(msgspec.Struct, frozen=True, kw_only=True):
    """What one model is given and what it shall learn.

    table: the spine; each of its rows is one event. event_time: expression, when a prediction would be asked for.
    inputs: what a request brings, and its kind; offline they are columns of the spine, known at event_time.
    label: expression. label_known_at: '' is the spine's known_at.
    perfect: features that are allowed to separate the labels without error; see `macadam.features.leakage`.
    """

    name: str
    table: Table
    event_time: str
    inputs: dict[str, Kind]
    features: tuple[View, ...]
    label: str
    label_known_at: str = ""
    perfect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _identifier(self.name.replace("-", "_"), "A service's name")
        if not self.features:
            raise InvalidInput(f"Service {self.name!r} has no features.", next_step="List at least one.")
        if not self.table.known_at:
            raise InvalidInput(
                f"The spine {self.table.name!r} of service {self.name!r} does not say when its rows are known.",
                next_step="Give the table known_at: the instant when the label is known.",
            )
        for name in self.inputs:
            _identifier(name, f"An input of service {self.name!r}")
        _refuse_doubles(self)
        _resolve_names(self)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(n for f in self.features for n in f.feature_names)

    @property
    def table_views(self) -> tuple[TableView, ...]:
        return tuple(f for f in self.features if not isinstance(f, RequestFeature))

    @property
    def tables(self) -> dict[str, Table]:
        """Every table by name, the spine first."""
        return {t.name: t for t in (self.table, *(v.table for v in self.table_views))}

    @property
    def known_label(self) -> str:
        """The expression of the instant when the label is known."""
        return self.label_known_at or self.table.known_at


class Definitions(msgspec.Struct, frozen=True, kw_only=True):
    """All services of a project. Each holds everything it needs, so one can be handed to a gateway alone."""

    services: tuple[FeatureService, ...]

    def __post_init__(self) -> None:
        named: dict[tuple[str, str], msgspec.Struct] = {}
        for service in self.services:
            _same(named, "service", service.name, service)
            for name, table in service.tables.items():
                _same(named, "table", name, table)
            for view in service.table_views:
                _same(named, "view", view.name, view)
                _same(named, "entity", view.entity.name, view.entity)

    @property
    def digest(self) -> str:
        return digest_of(encode(self))

    @property
    def version(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest[7:19]

    def service(self, name: str) -> FeatureService:
        """Raises InvalidInput with the names that exist."""
        for service in self.services:
            if service.name == name:
                return service
        known = ", ".join(s.name for s in self.services) or "none"
        raise InvalidInput(f"There is no feature service {name!r}.", next_step=f"Choose one of: {known}.")


def encode(value: msgspec.Struct) -> bytes:
    """The canonical JSON of a definition: what its digest is over."""
    return msgspec.json.encode(value, order="deterministic")


def decode(definitions: dict[str, object]) -> Definitions:
    """Reads what `macadam.features.load` wrote. Raises InvalidInput."""
    try:
        return msgspec.convert(definitions, Definitions)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The feature definitions do not fit: {error}.", next_step="Load them with `macadam.features.load`."
        ) from error


def fingerprint(view: TableView) -> str:
    """16 hex digits that change with the view's definition or its table's: stored values never mix."""
    return hashlib.blake2b(encode(view), digest_size=8).hexdigest()


def known_at(view: TableView) -> str:
    """The expression of the instant when a row counts for this view; '' for lookups."""
    return view.table.known_at if isinstance(view, Lookup) else view.known_at or view.table.known_at


def _microseconds(text: str) -> int:
    return round(parse_duration(text).total_seconds() * 1_000_000)


def _identifier(text: str, what: str) -> None:
    if not _IDENTIFIER.match(text):
        raise InvalidInput(f"{what} is {text!r}.", next_step="Use letters, digits and '_', a letter first.")


def _timed(name: str, table: Table) -> None:
    _identifier(name, "A view's name")
    if not table.known_at:
        raise InvalidInput(
            f"View {name!r} reads table {table.name!r}, which does not say when its rows are known.",
            next_step="Give the table known_at, or use Lookup for facts without a time.",
        )


def _columns(view: "Latest | Lookup") -> None:
    _identifier(view.name, "A view's name")
    if not view.columns:
        raise InvalidInput(f"View {view.name!r} has no columns.", next_step="Name at least one.")
    for column in view.columns:
        _identifier(column, f"A column of view {view.name!r}")
    # By name: stored values are lists in this order, and JSON objects have none to rely on.
    msgspec.structs.force_setattr(view, "columns", dict(sorted(view.columns.items())))


def _refuse_doubles(service: FeatureService) -> None:
    seen: set[str] = set()
    for name in service.feature_names:
        if name in seen or name in _RESERVED:
            raise InvalidInput(
                f"Service {service.name!r} has the feature {name!r} twice, or the name is reserved.",
                next_step="Give each feature its own name.",
            )
        seen.add(name)


def _resolve_names(service: FeatureService) -> None:
    """Every key is an input, and every argument of a request feature is an input or stands before it."""
    known = {*service.inputs, EVENT_TIME}
    for feature in service.features:
        wanted = feature.arguments if isinstance(feature, RequestFeature) else feature.entity.keys
        available = known if isinstance(feature, RequestFeature) else set(service.inputs)
        for name in wanted:
            if name not in available:
                raise InvalidInput(
                    f"Feature {feature.name!r} of service {service.name!r} needs {name!r}, which is no input of it.",
                    next_step=f"Declare it in inputs, which are: {', '.join(service.inputs) or 'none'}.",
                    details={"feature": feature.name, "input": name},
                )
        if isinstance(feature, RequestFeature):
            functions.check_kinds(feature.name, feature.function, [_kind_of(service, n) for n in feature.arguments])
        known.update(feature.feature_names)


def _kind_of(service: FeatureService, name: str) -> str:
    """'number', 'category', 'time', or '' for another feature's value, whose kind the data decide."""
    return "time" if name == EVENT_TIME else service.inputs.get(name, "")


def _same(named: dict[tuple[str, str], msgspec.Struct], kind: str, name: str, value: msgspec.Struct) -> None:
    if named.setdefault((kind, name), value) != value:
        raise InvalidInput(
            f"Two different definitions of the {kind} {name!r}.", next_step="Define it once, or name one differently."
        )
