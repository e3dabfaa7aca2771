"""`macadam rightsize endpoint`: the fewest replicas that answer within a promise, on requests that were seen."""

import argparse
from pathlib import Path

import msgspec

from macadam.compute.rightsizing import queueing
from macadam.compute.rightsizing.queueing import Sized, Work
from macadam.errors import InvalidInput
from macadam.faces.session import Session, Verb


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """load: times what was seen."""

    load: float
    sized: Sized


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    requests: int
    latency: float
    attainment: float
    cases: tuple[Case, ...]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace", metavar="FILE", required=True, help="CSV: TIMESTAMP, SECONDS that each kept a replica busy"
    )
    parser.add_argument("--latency", type=float, required=True, metavar="S", help="from arrival to answer")
    parser.add_argument(
        "--attainment", type=float, default=0.99, metavar="X", help="for that part of all requests; 0.99"
    )
    parser.add_argument("--load", type=float, default=1.0, metavar="X", help="times the trace's own; 1.0")


def _run(options: argparse.Namespace, session: Session) -> int:
    work = queueing.read(Path(options.trace))
    if not 0 < options.load < float("inf"):
        raise InvalidInput(f"A load of {options.load} is none.", next_step="Give --load above zero.")
    cases = tuple(
        Case(load=load, sized=queueing.size(_faster(work, load), options.latency, options.attainment))
        for load in (options.load * 0.8, options.load, options.load * 1.2)
    )
    answer = Answer(requests=len(work.at), latency=options.latency, attainment=options.attainment, cases=cases)
    if session.json:
        session.show(answer)
        return 0
    for line in _lines(answer):
        session.say(line)
    return 0


def _faster(work: Work, load: float) -> Work:
    return Work(at=tuple(at / load for at in work.at), seconds=work.seconds)


def _lines(answer: Answer) -> list[str]:
    own = answer.cases[1].sized
    lines = [
        (
            f"{answer.requests} requests, {own.rate:.2f}/s of {own.mean * 1000:.1f} ms each: "
            f"{own.replicas} replicas answer {own.attained:.2%} within {answer.latency:g} s."
        ),
        (
            f"One less: {own.before:.2%}. Busy {own.busy:.0%}; latency p50 {own.latency_p50 * 1000:.1f} ms, "
            f"p99 {own.latency_p99 * 1000:.1f} ms. The formula says {own.foreseen}."
        ),
    ]
    lines += [f"At {case.load:g} times the load: {case.sized.replicas}." for case in (answer.cases[0], answer.cases[2])]
    return lines


ENDPOINT = Verb(configure=_configure, run=_run)
