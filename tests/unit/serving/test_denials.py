"""What a gateway refuses is counted, survives its death, and ends in the ledger once."""

import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from unit.serving import homes
from unit.serving.homes import ENDPOINT, INPUTS, MODEL, PATH, PROJECT

from macadam.access.types import DenialCount, LimitRate, RecordDenials
from macadam.app.platform import Platform
from macadam.errors import Conflict
from macadam.faces.duties import record_denials
from macadam.ledger.types import ShowLog
from macadam.serving import denials
from macadam.serving.denials import DONE, MOST, OPEN, Counted, Denial, Denials
from macadam.serving.types import Deploy
from macadam.testing import token_of

NOON = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
ONE = Denial(actor="service:web", project="p", asset="endpoint:e", reason="no policy", status=403)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def at_noon(folder: Path) -> tuple[Denials, Clock]:
    clock = Clock()
    return Denials(folder, clock=clock, now=lambda: NOON), clock


def test_the_first_denial_is_on_disk_at_once_and_the_others_within_a_second(tmp_path: Path) -> None:
    counting, clock = at_noon(tmp_path)
    for _ in range(500):
        counting.note(ONE)
    (path,) = tmp_path.glob(f"*{OPEN}")
    assert denials.read(path) == ({ONE: 1}, 0)
    clock.now += 1.0
    counting.tend()
    assert denials.read(path) == ({ONE: 500}, 0)
    assert path.stat().st_size < 500


def test_a_minute_s_counts_are_one_small_file_whatever_was_asked(tmp_path: Path) -> None:
    counting, clock = at_noon(tmp_path)
    for number in range(5 * MOST):
        counting.note(msgspec.structs.replace(ONE, asset=f"endpoint:{number}"))
    clock.now += 30.0
    counting.tend()
    (path,) = tmp_path.iterdir()
    assert path.suffix == DONE
    counts, others = denials.read(path)
    assert (len(counts), others) == (MOST, 4 * MOST)
    assert path.name.startswith("20260101T1200Z-")
    counting.note(ONE)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_open_report_is_left_to_its_gateway_until_that_is_over(tmp_path: Path) -> None:
    counting, _ = at_noon(tmp_path)
    counting.note(ONE)
    (path,) = tmp_path.iterdir()
    assert denials.finished(tmp_path, time.time()) == []
    assert denials.finished(tmp_path, time.time() + denials.LEFT_AFTER + 5) == [path]
    path.with_suffix(DONE).write_bytes(path.read_bytes())  # as if it was killed between the two names
    assert denials.finished(tmp_path, time.time()) == [path.with_suffix(DONE)]
    assert not path.exists()


def test_a_torn_line_loses_itself_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / f"r{DONE}"
    whole = msgspec.json.encode(Counted(denial=ONE, count=3))
    path.write_bytes(whole + b"\n\xff\xfe\n[]\n" + whole[:-9])
    assert denials.read(path) == ({ONE: 3}, 0)


def test_a_full_disk_is_said_and_answering_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("")
    counting = Denials(tmp_path / "taken")
    counting.note(ONE)
    counting.close()
    assert "denials are not counted" in caplog.text


def test_a_report_is_recorded_once_and_never_with_other_counts(platform: Platform) -> None:
    entry = DenialCount(actor="service:web", project="p", asset="endpoint:e", reason="r", status=403, count=7)
    request = RecordDenials(report="r-1", denials=(entry,), others=2)
    first, second = platform.call(request), platform.call(request)
    assert (first.denials, first.known, second.known) == (9, False, True)
    with pytest.raises(Conflict, match="other counts"):
        platform.call(msgspec.structs.replace(request, others=3))


def test_a_report_that_somebody_has_written_into_is_put_aside_and_holds_up_no_other(platform: Platform) -> None:
    folder = platform.settings.home / denials.FOLDER
    folder.mkdir()
    line = msgspec.json.encode(Counted(denial=ONE, count=3))
    for name in ("a-1", "b b"):
        (folder / f"{name}{DONE}").write_bytes(line)
    record_denials(platform)
    (folder / f"a-1{DONE}").write_bytes(line.replace(b"3}", b"4}"))
    (folder / f"c-1{DONE}").write_bytes(line)
    record_denials(platform)
    assert {path.name for path in folder.iterdir()} == {"a-1.refused", "b b.refused"}


def test_denials_of_a_gateway_that_is_killed_end_in_the_ledger(home: Path) -> None:
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        viewer = token_of(platform, "ann", {PROJECT: "viewer"})
        caller = token_of(platform, "service:web", {PROJECT: "caller"})
        platform.call(LimitRate(principal="service:web", per_second=0.01, burst=3))
        with homes.gateway(home, MACADAM_ANONYMOUS_RATE="0.01", MACADAM_ANONYMOUS_BURST="4") as gateway:
            with httpx.Client(base_url=gateway.url, timeout=10) as client:

                def ask(token: str) -> httpx.Response:
                    return client.post(PATH, json={"inputs": INPUTS}, headers={"authorization": f"Bearer {token}"})

                end = time.monotonic() + 15
                while client.get("/health/ready").status_code != 200:
                    assert time.monotonic() < end
                    time.sleep(0.05)
                assert [ask("guess").status_code for _ in range(6)] == [401] * 4 + [429] * 2
                assert [ask(viewer).status_code for _ in range(5)] == [403] * 5
                answers = [ask(caller) for _ in range(5)]
                assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
                assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
                assert answers[-1].headers["ratelimit-policy"] == '"default";q=3;w=300'
                time.sleep(2.5)
                assert ask("guess").status_code == 429  # noted after the last flush: what a kill may lose
            gateway.process.send_signal(signal.SIGKILL)
            gateway.process.wait(10)
        for path in (home / denials.FOLDER).glob(f"*{OPEN}"):
            path.rename(path.with_suffix(DONE))  # two and a half minutes later
        record_denials(platform)
        assert list((home / denials.FOLDER).iterdir()) == []
        end = time.monotonic() + 10
        while not (found := platform.call(ShowLog(kind="access.record_denials")).entries):
            assert time.monotonic() < end
            time.sleep(0.05)
    counted = {(d["actor"], d["status"]): d["count"] for entry in found for d in entry.body["denials"]}
    assert counted[("", 401)] == 4
    assert counted[("", 429)] in (2, 3)
    assert (counted["principal:ann", 403], counted["service:web", 429]) == (5, 2)


def test_bodies_that_are_too_deep_do_not_end_the_gateway(deployed: Platform, home: Path, token: str) -> None:
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        end = time.monotonic() + 15
        while client.get("/health/ready").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        for deep in (b"[" * 300_000, b'{"inputs":{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}}"):
            assert client.post(PATH, content=deep).status_code in (400, 422)
        headers = {f"x-{n}": "v" for n in range(150)}
        assert client.post(PATH, json={"inputs": INPUTS}, headers=headers).status_code == 431
        assert client.post(PATH, json={"inputs": INPUTS}).status_code == 200
