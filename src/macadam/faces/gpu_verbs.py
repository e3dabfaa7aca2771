"""`macadam gpu import | watch`: samples from files, exporters and Prometheus, once or again and again."""

import argparse
import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import msgspec

from macadam import operations
from macadam.compute.telemetry import collecting, fetch, recordings
from macadam.compute.telemetry.requests import Delivered, DeliverSamples
from macadam.compute.telemetry.types import Sample, as_json
from macadam.errors import InvalidInput
from macadam.faces.session import Session, Verb
from macadam.settings import Settings
from macadam.values import parse_duration, parse_instant, utc_now

_PIECE = 5000
_SHOWN = 10
_READ = "/read"


class Imported(msgspec.Struct, kw_only=True):
    """What became of a source. refused: by reason; problems: what was no sample, the first of it in words."""

    samples: int = 0
    refused: dict[str, int] = {}
    problems: list[str] = []


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FILE|URL",
        help="a recording (.jsonl), a table (.parquet), a scrape's text; an exporter's URL, or a Prometheus's …/api/v1/read",
    )
    parser.add_argument("--since", metavar="DURATION|TIME", help="of a Prometheus: from when on; default 1h")
    parser.add_argument("--until", metavar="TIME", help="of a Prometheus: default now")


def _import(options: argparse.Namespace, session: Session) -> int:
    told = Imported()
    for samples, problems in _pieces(options):
        told.problems += problems
        _deliver(samples, told, session)
    if told.problems and not (told.samples or told.refused):
        raise InvalidInput(
            f"Nothing in {options.source} is a sample: {told.problems[0]}",
            next_step="Give a recording (.jsonl), a table (.parquet), or what an exporter says at /metrics.",
        )
    session.show(told) if session.json else _say(told, session)
    return 0


def _pieces(options: argparse.Namespace) -> Iterable[tuple[list[Sample], list[str]]]:
    source, now = str(options.source), utc_now()
    if not source.startswith(("http://", "https://")):
        yield from recordings.read(Path(source), now=now)
        return
    timeout = max(30.0, Settings.load().telemetry.timeout)
    if source.partition("?")[0].endswith(_READ):
        end = parse_instant(options.until) if hasattr(options, "until") else now
        since = str(getattr(options, "since", "1h"))
        at = parse_instant(since) if "T" in since else end - parse_duration(since)
        if not at < end:
            raise InvalidInput(f"--since {since} is not before --until.", next_step="Give an earlier --since.")
        while at < end:  # an hour at a time, so that an answer stays small
            stop = min(end, at + timedelta(hours=1))
            # The interval is closed on both sides: an instant between two is read once.
            found, problems = fetch.history(source, at, stop - timedelta(milliseconds=1), now=now, timeout=timeout)
            yield found, list(problems.named)
            at = stop
        return
    with fetch.Exporter(source, timeout=timeout) as exporter:
        found, problems = exporter.read(now)
        yield found, list(problems.named)


def _deliver(samples: list[Sample], told: Imported, session: Session) -> None:
    operations.load("gpu")
    declared = operations.of_request(DeliverSamples)
    for at in range(0, len(samples), _PIECE):
        piece = msgspec.to_builtins([as_json(sample) for sample in samples[at : at + _PIECE]])
        done: Delivered = session.call(declared, {"samples": piece})
        told.samples += done.samples
        for reason, count in done.refused.items():
            told.refused[reason] = told.refused.get(reason, 0) + count


def _say(told: Imported, session: Session) -> None:
    session.say(f"{told.samples} samples delivered.")
    for reason, count in told.refused.items():
        session.say(f"{count} refused: {_REASONS.get(reason, reason)}.")
    for problem in told.problems[:_SHOWN]:
        session.say(f"Left out: {problem}")
    if len(told.problems) > _SHOWN:
        session.say(f"and {len(told.problems) - _SHOWN} more; --json lists them.")
    if told.samples:
        session.say("Next: macadam gpu list, macadam gpu trust, macadam gpu usage")


_REASONS = {
    "ahead": "their instants are more than an hour ahead of our clock",
    "early": "their instants are before the year 2000",
    "late": "their hours are sealed and the samples that they would be merged with have expired",
}


def _configure_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--exporter", metavar="URL", action="append", help="a dcgm-exporter; may be repeated")
    parser.add_argument("--host", action="store_true", help="also this machine's processors and memory")
    parser.add_argument("--every", metavar="SECONDS", type=float, help="default: MACADAM_TELEMETRY_EVERY, else 15")
    parser.add_argument("--record", metavar="FILE.jsonl", help="write samples there instead of delivering them")
    parser.add_argument("--turns", metavar="N", type=int, help="stop after so many; default: until Ctrl-C")


def _watch(options: argparse.Namespace, session: Session) -> int:
    settings = Settings.load().telemetry
    every = float(getattr(options, "every", settings.every))
    if not every > 0:
        raise InvalidInput(f"--every is {every}.", next_step="Give seconds, such as 15.")
    found = collecting.sources(
        getattr(options, "exporter", []),
        devices=settings.local,
        host=bool(getattr(options, "host", False)),
        node=socket.gethostname(),
        clock=utc_now,
        timeout=settings.timeout,
        owner_of=collecting.nobody,
    )
    if not found:
        raise InvalidInput(
            "There is nothing to watch: this machine has no NVIDIA driver, and no exporter was named.",
            next_step="Give --exporter http://HOST:9400/metrics, or --host for processors and memory.",
        )
    turns = int(getattr(options, "turns", 0))
    done = 0
    with collecting.Collector(found, clock=utc_now) as collector:
        while True:
            told = Imported()
            reading = collector.read()
            told.problems = [f"{source}: {said}" for source, all_ in reading.problems.items() for said in all_]
            if hasattr(options, "record"):
                recordings.append(Path(options.record), reading.samples)
                told.samples = len(reading.samples)
            elif reading.samples:
                _deliver(list(reading.samples), told, session)
            session.say(f"{utc_now():%H:%M:%S} {told.samples} samples" + "".join(f"\n  {p}" for p in told.problems[:3]))
            done += 1
            if done == turns:
                break
            time.sleep(every)
    if session.json:
        session.show({"turns": done, "samples": told.samples, "problems": told.problems})
    return 0


IMPORT = Verb(configure=_configure_import, run=_import)
WATCH = Verb(configure=_configure_watch, run=_watch)
