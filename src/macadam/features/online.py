"""Reading features on the request path: one batch of point reads, then arithmetic, in microseconds.

A view and an entity have one stored value, found under the view's fingerprint: a changed definition never reads what
an older one wrote. Who writes the values is in `push` and `materialise`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from macadam.errors import InvalidInput
from macadam.features import functions, tiles
from macadam.features.define import (
    EVENT_TIME,
    FeatureService,
    Kind,
    Latest,
    Lookup,
    RequestFeature,
    TableView,
    WindowAggregate,
    fingerprint,
)
from macadam.features.functions import Value
from macadam.ports import OnlineStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SEPARATOR = "\x1f"  # between the parts of an entity's key
# Newest rows kept for each entity of a Latest view, so that a request about a moment ago finds what it would have.
HISTORY = 8
_LONGEST_KEY = 300  # bytes; longer ones are hashed, as LMDB takes keys of at most 511 bytes
_MICROSECOND = timedelta(microseconds=1)


class LatestRow(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A row of a Latest or Lookup view as stored. known: microseconds since 1970 UTC."""

    known: int
    row_id: str
    values: tuple[float | str | None, ...]


_rows = msgspec.msgpack.Decoder(list[LatestRow])
_pack_rows = msgspec.msgpack.Encoder().encode

Reader = Callable[[bytes | None, int], Sequence[Value]]
"""From a stored value and the instant in microseconds to the view's values, in the order of its names."""


def microseconds(at: datetime) -> int:
    """Whole microseconds since 1970 UTC, exactly. Raises InvalidInput for a time without zone."""
    if at.tzinfo is None:
        raise InvalidInput(f"The time {at.isoformat()} has no time zone.", next_step="Add one, such as Z or +01:00.")
    return (at - EPOCH) // _MICROSECOND


def prefix(project: str, view: TableView) -> bytes:
    """What the keys of a view's stored values begin with."""
    return f"f\x00{project}\x00{fingerprint(view)}\x00".encode()


def entity_key(parts: Sequence[str]) -> bytes:
    """The rest of the key: the entity, by its key values as text."""
    text = SEPARATOR.join(parts).encode()
    if len(text) <= _LONGEST_KEY:
        return b"=" + text
    return b"#" + hashlib.blake2b(text, digest_size=32).digest()


def unpack_rows(value: bytes | None) -> list[LatestRow]:
    """Rows in order, oldest first."""
    return _rows.decode(value) if value else []


def pack_rows(rows: list[LatestRow]) -> bytes:
    return _pack_rows(rows)


class OnlineService:
    """One feature service, ready to be read. Safe to use from several threads."""

    def __init__(self, service: FeatureService) -> None:
        self.service = service
        self.names = service.feature_names
        self._inputs = [(name, _checked_input(name, kind)) for name, kind in service.inputs.items()]
        self._views = [
            (v, v.feature_names, [_key_part(service, k) for k in v.entity.keys], _reader(v))
            for v in service.table_views
        ]
        self._requests = [
            (f.name, f.arguments, functions.compiled(f.name, f.function, f.zone))
            for f in service.features
            if isinstance(f, RequestFeature)
        ]
        self._prefixes: dict[str, list[bytes]] = {}

    def read(self, store: OnlineStore, project: str, request: Mapping[str, object], at: datetime) -> dict[str, Value]:
        """The features of one request at an instant, in the service's order; None where a value is unknown.

        request: every input of the service, None for one that is missing. Raises InvalidInput.
        """
        now = microseconds(at)
        if len(request) != len(self._inputs):
            self._refuse_unknown(request)
        known: dict[str, Any] = {name: check(request) for name, check in self._inputs}
        keys, present = self._keys(project, known)
        values = iter(store.get(keys)) if keys else iter(())
        found: dict[str, Value] = {}
        for (_, names, _, reader), there in zip(self._views, present, strict=True):
            if there:
                found.update(zip(names, reader(next(values), now), strict=True))
            else:
                found.update(dict.fromkeys(names))
        known[EVENT_TIME] = at
        known.update(found)
        for name, arguments, function in self._requests:
            known[name] = found[name] = self._apply(name, function, [known[a] for a in arguments])
        return {name: found[name] for name in self.names}

    def _keys(self, project: str, known: Mapping[str, Any]) -> tuple[list[bytes], list[bool]]:
        prefixes = self._prefixes.get(project)
        if prefixes is None:
            prefixes = self._prefixes[project] = [prefix(project, v) for v, *_ in self._views]
        keys, present = [], []
        for start, (_, _, parts, _) in zip(prefixes, self._views, strict=True):
            texts = [part(known) for part in parts]
            present.append(None not in texts)
            if None not in texts:
                keys.append(start + entity_key([t for t in texts if t is not None]))
        return keys, present

    def _apply(self, name: str, function: functions.Function, arguments: list[Any]) -> Value:
        try:
            return function(*arguments)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InvalidInput(
                f"Request feature {name!r} cannot be computed from {arguments}: {error}.",
                next_step="Compare the request with the service's inputs.",
            ) from error

    def _refuse_unknown(self, request: Mapping[str, object]) -> None:
        unknown = sorted(set(request) - set(self.service.inputs))
        if unknown:
            raise InvalidInput(
                f"The service {self.service.name!r} has no input {', '.join(map(repr, unknown))}.",
                next_step=f"Its inputs are: {', '.join(self.service.inputs)}.",
            )


def compile_service(spec: Mapping[str, object]) -> OnlineService:
    """From a service as plain values, as definitions hold it. Raises InvalidInput."""
    try:
        return OnlineService(msgspec.convert(spec, FeatureService))
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The feature service does not fit: {error}.", next_step="Register the definitions again."
        ) from error


def _checked_input(name: str, kind: Kind) -> Callable[[Mapping[str, object]], Value]:
    def number(request: Mapping[str, object]) -> Value:
        value = request.get(name, ...)
        if value.__class__ is float or value.__class__ is int:
            try:
                given = float(value)
            except OverflowError:  # a whole number of more than 308 digits
                raise _unfit_input(name, value, "a number of 64 bits") from None
            return given if math.isfinite(given) else None
        if value is None:
            return None
        raise _unfit_input(name, value, "a number")

    def category(request: Mapping[str, object]) -> Value:
        value = request.get(name, ...)
        if value is None or value.__class__ is str:
            return value
        if value.__class__ is int:
            return str(value)
        raise _unfit_input(name, value, "text")

    return number if kind == "number" else category


def _unfit_input(name: str, value: object, expected: str) -> InvalidInput:
    got = "missing" if value is ... else f"{value!r}"
    return InvalidInput(
        f"The input {name!r} is {got}, expected {expected} or null.",
        next_step="Send every input of the feature service.",
        details={"input": name},
    )


def _key_part(service: FeatureService, name: str) -> Callable[[Mapping[str, Any]], str | None]:
    if service.inputs[name] == "category":
        return lambda known: known[name]

    def whole(known: Mapping[str, Any]) -> str | None:
        value = known[name]
        if value is None:
            return None
        if value != int(value):
            raise _unfit_input(name, value, "a whole number")
        return str(int(value))

    return whole


def _reader(view: TableView) -> Reader:
    if isinstance(view, WindowAggregate):
        return _window_reader(view)
    if isinstance(view, Latest):
        return _latest_reader(view)
    return _lookup_reader(view)


_AGGREGATES: dict[str, Callable[[tiles.Window], Value]] = {
    "count": lambda w: w[0] if w else None,
    "sum": lambda w: w[1] if w else None,
    "mean": lambda w: w[1] / w[0] if w and w[0] else None,
}


def _window_reader(view: WindowAggregate) -> Reader:
    lengths, tile_us = view.tiles, view.tile_us
    takes = [_AGGREGATES[f] for f in view.functions]

    def read(value: bytes | None, now: int) -> Sequence[Value]:
        found = tiles.windows(value, now // tile_us, lengths)
        return [get(w) for get in takes for w in found]

    return read


def _latest_reader(view: Latest) -> Reader:
    missing: Sequence[Value] = (None,) * len(view.feature_names)
    oldest, aged = view.max_age_us, view.age

    def read(value: bytes | None, now: int) -> Sequence[Value]:
        for row in reversed(unpack_rows(value)):
            if row.known <= now:
                if oldest and now - row.known > oldest:
                    return missing
                return (*row.values, (now - row.known) / 1e6) if aged else row.values
        return missing

    return read


def _lookup_reader(view: Lookup) -> Reader:
    missing: Sequence[Value] = (None,) * len(view.feature_names)

    def read(value: bytes | None, _now: int) -> Sequence[Value]:
        rows = unpack_rows(value)
        return rows[-1].values if rows else missing

    return read
