"""Building a training set: pinned snapshots in, one Parquet object out, the same bytes for the same input."""

import errno
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from macadam.errors import InvalidInput, StorageFull
from macadam.features import offline, registry, snapshots
from macadam.features.types import BuildTrainingSet, Feature, Views
from macadam.lazy import lazy
from macadam.operations import Context
from macadam.values import instant, require_aware

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pq = lazy("pyarrow.parquet")


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A training set that is stored, but that nothing names yet."""

    views: Views
    snapshots: tuple[str, ...]
    digest: str
    rows: int
    unlabelled: int
    columns: tuple[Feature, ...]
    seconds: float


def build(context: Context, request: BuildTrainingSet) -> Built:
    """Raises NotFound, InvalidInput, ChecksFailed (a leak, or definitions that do not fit), StorageFull."""
    began = time.perf_counter()
    start, end = require_aware(request.start, "start"), require_aware(request.end, "end")
    if end <= start:
        raise InvalidInput(
            f"The range from {instant(start)} to {instant(end)} is empty.", next_step="Let start come before end."
        )
    with context.read() as sql:
        views, definitions = registry.find_views(sql, request.project, request.views)
        service = definitions.service(request.service)
        pinned = snapshots.pin(sql, request.project, service)
    tables = snapshots.read(context, service, pinned)
    with tempfile.TemporaryDirectory(dir=context.ports.settings.home / "work", prefix="training-set-") as place:
        spill = Path(place) / "spill"
        frame = offline.build(service, tables, start, end, spill=spill, progress=context.progress)
        tables.clear()
        columns = tuple(Feature(name=n, kind=frame.kinds[n]) for n in service.feature_names)
        about = {
            "features": columns,
            "label": service.label,
            "service": service.name,
            "views": views.ref,
            "start": instant(start),
            "end": instant(end),
            "snapshots": [s.ref for s in pinned.values()],
        }
        file = Path(place) / "rows.parquet"
        rows = frame.rows.replace_schema_metadata({b"macadam": msgspec.json.encode(about)})
        _write(rows, file)
        digest = context.ports.objects.put_file(file)
    return Built(
        views=views,
        snapshots=tuple(s.ref for s in pinned.values()),
        digest=digest,
        rows=frame.rows.num_rows,
        unlabelled=frame.unlabelled,
        columns=columns,
        seconds=time.perf_counter() - began,
    )


def _write(rows: "pa.Table", file: Path) -> None:
    try:
        pq.write_table(rows, file, compression="zstd")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(
                "The disk is full: no training set was stored.", next_step="Free space and run the same call again."
            ) from error
        raise
