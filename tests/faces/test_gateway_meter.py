"""What a gateway took is shared by the endpoints that answered, and reported once."""

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam import testing
from macadam.access.types import CreateProject
from macadam.compute.waterfall.requests import ShowStages
from macadam.errors import Unavailable
from macadam.faces import gateway_meter, gateway_process
from macadam.faces.gateway_meter import GatewayMeter, Look
from macadam.serving.metrics import Metrics

answers = st.dictionaries(st.tuples(st.sampled_from("pq"), st.sampled_from("ab")), st.integers(0, 1000))


def look(found, *, cpu: float, at: float = 100.0, pid: int = 1) -> Look:
    return Look(pid=pid, created=50.0, at=at, cpu=cpu, answers=found)


@given(answers, answers, st.floats(0, 1e6))
def test_parts_sum_to_what_was_spent_between_two_looks(first, more, spent):
    later = {key: first.get(key, 0) + more.get(key, 0) for key in {*first, *more}}
    parts = gateway_meter.parts(look(first, cpu=3), look(later, cpu=3 + spent, at=160))
    assert {part.endpoint: part.calls for part in parts} == {key: count for key, count in more.items() if count}
    if parts:
        assert sum(part.cpu for part in parts) == pytest.approx(spent, abs=1e-6)
        assert sum(part.wall for part in parts) == pytest.approx(60)


def test_another_process_counts_from_its_start():
    (part,) = gateway_meter.parts(look({("p", "a"): 900}, cpu=50), look({("p", "a"): 10}, cpu=2, pid=2))
    assert (part.calls, part.cpu, part.wall) == (10, 2, 50)


def test_answers_are_read_from_what_the_gateway_says():
    metrics = Metrics()
    metrics.requests = {("p", "a", 200): 7, ("p", "a", 503): 2, ("q", "b", 200): 1}
    assert gateway_meter.counts(metrics.text({}).decode()) == {("p", "a"): 7, ("q", "b"): 1}


def test_the_duty_reports_each_stretch_once(tmp_path, monkeypatch):
    with testing.open_platform(tmp_path) as platform:
        platform.call(CreateProject(project="p"))
        meter = GatewayMeter()
        meter(platform)  # there is no gateway
        gateway_process._remember(tmp_path, os.getpid())
        monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: _Times())
        monkeypatch.setattr(
            gateway_meter,
            "_metrics",
            lambda _: 'macadam_gateway_requests_total{project="p",endpoint="a",status="200"} 8\n',
        )
        meter(platform)
        meter(platform)
        (serve,) = platform.call(ShowStages(project="p")).stages[-1:]
        assert (serve.stage, serve.calls, serve.cpu) == ("serve", 8, 4.0)


class _Times:
    user, system = 3.0, 1.0


def test_a_gateway_that_does_not_answer_is_an_error_of_the_duty(tmp_path):
    with testing.open_platform(tmp_path, environment={"MACADAM_GATEWAY_PORT": "1"}) as platform:
        gateway_process._remember(tmp_path, os.getpid())
        with pytest.raises(Unavailable, match="metrics"):
            GatewayMeter()(platform)
