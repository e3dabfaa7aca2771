"""What a gateway counts, as Prometheus text (exposition format 0.0.4). Written by hand: a client library costs more
per request than the journal does.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

_BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Histogram:
    """Seconds, in buckets."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += times
        self._sum += seconds * times

    def lines(self, name: str, label: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*_BOUNDS, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum:.9f}"
        yield f"{name}_count{{{label}}} {total}"


class Metrics:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.unrecorded: dict[int, int] = {}
        self.stages = {stage: Histogram() for stage in ("features", "predict", "journal", "total")}
        self.records = 0
        self.answered = 0
        self.batches = 0

    def text(self, gauges: Mapping[str, float], *, more: Sequence[str] = ()) -> bytes:
        """gauges: what is read at this moment, by name; more: lines that others have made."""
        lines = ["# TYPE macadam_gateway_requests_total counter"]
        for (project, endpoint, status), count in sorted(self.requests.items()):
            label = f'project="{project}",endpoint="{endpoint}",status="{status}"'
            lines.append(f"macadam_gateway_requests_total{{{label}}} {count}")
        lines.append("# TYPE macadam_gateway_unrecorded_answers_total counter")
        lines += [
            f'macadam_gateway_unrecorded_answers_total{{status="{status}"}} {count}'
            for status, count in sorted(self.unrecorded.items())
        ]
        for name, value in (("records", self.records), ("answers", self.answered), ("batches", self.batches)):
            lines += [f"# TYPE macadam_gateway_{name}_total counter", f"macadam_gateway_{name}_total {value}"]
        lines.append("# TYPE macadam_gateway_stage_seconds histogram")
        for stage, histogram in self.stages.items():
            lines += histogram.lines("macadam_gateway_stage_seconds", f'stage="{stage}"')
        for name, gauge in gauges.items():
            lines += [f"# TYPE macadam_gateway_{name} gauge", f"macadam_gateway_{name} {gauge:g}"]
        return ("\n".join([*lines, *more]) + "\n").encode()
