"""Right-sizing on Azure's public conversation trace: the cheapest mix against the best single kind of GPU, each kept for
99.5% of the requests in the simulator, both on the blocks of time it was sized on and on those that were held out.

    python -m benchmarks.rightsizing [--quick]     (--quick: the trace's own load only, without sensitivity)

The trace is read from ../shared/data/llm; without it there is nothing to measure. Prices are the catalogue's, on
demand, of AWS, Azure and Google Cloud. The loads are the trace's own and its multiples: how much a mix saves hangs on
how well whole GPUs happen to fit the load.
"""

import sys
import time
from pathlib import Path

from benchmarks.report import Figure, show
from macadam.compute.catalogue import gpus, llms, prices
from macadam.compute.rightsizing import bounds, calibration, offers, report, roofline, serving, traces
from macadam.compute.rightsizing.holdout import Judged
from macadam.compute.rightsizing.types import PHYSICS, Efficiency, Engine, Replica, Slo, Trace

TRACE = Path(__file__).parents[2] / "shared/data/llm/AzureLLMInferenceTrace_conv.csv"
MODEL = "llama-3.1-8b"
SLO = Slo(ttft=1.0, tpot=0.05)
PROVIDERS = ("aws", "azure", "gcp")
LOADS = (1.0, 2.0, 4.0)
STUDIED = 2.0  # the load whose sensitivity is told
_SECONDS = 600.0  # for everything


def run(*, quick: bool = False) -> list[Figure]:
    if not TRACE.exists():
        sys.stdout.write(f"{TRACE} is not there; nothing was measured.\n")
        return []
    trace = traces.read(TRACE).trace
    began = time.perf_counter()
    figures = [*_model(), *_simulator(trace)]
    for load in LOADS[:1] if quick else LOADS:
        figures += _mix(trace, load, with_sensitivity=load == STUDIED)
    figures.append(Figure(name="everything", value=time.perf_counter() - began, unit="s", at_most=_SECONDS))
    return figures


def _model() -> list[Figure]:
    """How far the roofline model is from measurements that it was not fitted to."""
    error = calibration.error(calibration.ratios(Efficiency(), "test"))
    rows = f"{error.rows} published measurements"
    return [
        Figure(name="model over measured, median", value=error.median, unit="x", note=rows),
        Figure(name="model over measured, least", value=error.low, unit="x"),
        Figure(name="model over measured, most", value=error.high, unit="x"),
        Figure(name="model off by, median", value=error.typical, unit="of it", at_most=0.1),
    ]


def _simulator(trace: Trace) -> list[Figure]:
    """How fast it is, and that it stays above physics."""
    engine = Engine()
    replica = Replica(llm=llms.find(MODEL), gpu=gpus.find("a100-sxm-80gb"))
    figures = []
    for name, efficiency in (("as calibrated", Efficiency()), ("at the data sheet", PHYSICS)):
        pace = roofline.speed(replica, engine, efficiency)
        began = time.perf_counter()
        served = serving.serve(trace, [pace] * 2, engine, classes=[0] * len(trace), work=[[1.0, 1.0]])
        taken = time.perf_counter() - began
        least = [
            bounds.busy(
                replica,
                engine,
                [
                    (p, o)
                    for p, o, where in zip(trace.prompt, trace.output, served.where, strict=True)
                    if where == number
                ],
            )
            for number in range(2)
        ]
        ratio = min(busy / bound for busy, bound in zip(served.busy, least, strict=True))
        figures.append(
            Figure(
                name=f"time over the roofline bound, {name}", value=ratio, unit="x", at_least=1.0, note="2 x A100 80GB"
            )
        )
        figures.append(
            Figure(name=f"requests simulated a second, {name}", value=len(trace) / taken, unit="/s", at_least=4000)
        )
    return figures


def _mix(trace: Trace, load: float, *, with_sensitivity: bool) -> list[Figure]:
    listed = [offer.price for offer in prices.offers()]
    said = report.rightsize(
        traces.faster(trace, load),
        llms.find(MODEL),
        SLO,
        offers.choose(listed, providers=PROVIDERS),
        engine=Engine(),
        efficiency=Efficiency(),
        with_sensitivity=with_sensitivity,
    )
    fleet = ", ".join(f"{line.replicas} x {line.gpu} tp{line.tp}" for line in said.best.lines)
    single = next((s.choice for s in said.singles if s.gpu == said.best_single), None)
    rate = f"{said.requests / said.seconds:.1f} requests/s"
    figures = [
        Figure(name=f"mix at x{load:g}", value=said.best.hourly.micros / 1e6, unit="USD/h", note=f"{rate}: {fleet}"),
        Figure(
            name=f"mix at x{load:g}, promise kept", value=said.best.attained, unit="of all", at_least=SLO.attainment
        ),
        *_held(f"mix at x{load:g}", said.best.judged),
        Figure(name=f"mix at x{load:g}, a million tokens", value=said.best.per_million.micros / 1e6, unit="USD"),
    ]
    if single is not None:
        figures += [
            Figure(
                name=f"best single kind at x{load:g}",
                value=single.hourly.micros / 1e6,
                unit="USD/h",
                note=said.best_single,
            ),
            Figure(
                name=f"best single kind at x{load:g}, promise kept",
                value=single.attained,
                unit="of all",
                at_least=SLO.attainment,
            ),
            *_held(f"best single kind at x{load:g}", single.judged),
            Figure(name=f"saved at x{load:g}", value=said.saving, unit="of it", at_least=0.0),
        ]
    for change in said.sensitivity:
        cost = "no fleet keeps it" if change.hourly is None else f"then {change.hourly.micros / 1e6:.2f} USD/h"
        figures.append(Figure(name=f"kept with {change.what}", value=change.attained, unit="of all", note=cost))
    return figures


def _held(name: str, judged: Judged | None) -> list[Figure]:
    """On requests that the fleet was not sized on, with the interval."""
    if judged is None:
        return []
    note = f"95%: {judged.low:.2%} to {judged.high:.2%}; {judged.requests} requests worth {judged.worth:.0f}: {judged.standing}"
    return [
        Figure(
            name=f"{name}, kept where held out",
            value=judged.attained,
            unit="of all",
            at_least=SLO.attainment,
            note=note,
        )
    ]


if __name__ == "__main__":
    start = time.perf_counter()
    found = run(quick="--quick" in sys.argv)
    show("rightsizing", found, time.perf_counter() - start)
    sys.exit(0 if all(figure.met for figure in found) else 1)
