"""Runs benchmarks by name, or all: each module of this package with a `run()` that prints its figures.

`python -m benchmarks --list` says what there is; `--out DIR` also writes each one's figures as JSON.
"""

import argparse
import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import benchmarks
from benchmarks.report import Figure, machine, show


def names() -> list[str]:
    """The benchmarks, sorted: modules that are no part of the frame."""
    frame = {"report"}
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if name not in frame and not name.startswith("_"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help="which; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--out", metavar="DIR", help="also write NAME.json with the figures there")
    chosen = parser.parse_args()
    known = names()
    if chosen.list:
        sys.stdout.write("\n".join(known) + "\n")
        return 0
    if unknown := [name for name in chosen.name if name not in known]:
        sys.stderr.write(f"There is no benchmark called {', '.join(unknown)}. There are: {', '.join(known)}.\n")
        return 2
    sys.stdout.write(machine() + "\n")
    missed = 0
    for name in chosen.name or known:
        began = time.perf_counter()
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").run()
        show(name, figures, time.perf_counter() - began)
        missed += sum(1 for figure in figures if not figure.met)
        if chosen.out:
            _write(Path(chosen.out), name, figures)
    return 1 if missed else 0


def _write(directory: Path, name: str, figures: list[Figure]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    said = {"machine": machine(), "figures": [figure.facts() for figure in figures]}
    (directory / f"{name}.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
