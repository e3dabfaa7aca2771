import itertools
import threading
import time

from macadam.app.platform import Platform
from macadam.errors import Busy
from macadam.faces.duties import Clerk, Duty, seal_journal
from macadam.journal import record, sealing
from macadam.journal.types import ListSegments
from macadam.journal.writer import JournalWriter
from macadam.ledger.types import ShowLog
from macadam.values import instant, utc_now, uuid7

PREDICTION = record.Prediction(
    id=uuid7(),
    at=instant(utc_now()),
    project="flights",
    endpoint="delay-risk",
    variant="live",
    version="model:delay-risk@1",
    model_digest="sha256:" + "0" * 64,
    deployment=uuid7(),
    actor="service:caller",
    inputs={"carrier": "UA"},
    features={"distance": 719},
    output={"score": 0.4},
    outcome="ok",
    stages_us={"predict": 40},
)


def test_duties_are_done_again_and_again_and_stop_with_the_clerk(platform: Platform) -> None:
    turns: list[float] = []
    clerk = Clerk(platform, (Duty(name="tick", every=0.01, act=lambda _platform: turns.append(time.monotonic())),))
    while len(turns) < 3:
        time.sleep(0.005)
    clerk.close()
    done = len(turns)
    time.sleep(0.05)
    assert len(turns) == done


def test_a_duty_that_fails_is_tried_again_later_and_holds_up_no_other(platform: Platform) -> None:
    failures: list[float] = []
    turns: list[int] = []

    def fail(_platform: Platform) -> None:
        failures.append(time.monotonic())
        raise Busy("Not now.") if len(failures) % 2 else RuntimeError("broken")

    clerk = Clerk(
        platform,
        (
            Duty(name="fails", every=0.01, act=fail),
            Duty(name="works", every=0.01, act=lambda _platform: turns.append(1)),
        ),
    )
    while len(failures) < 4:
        time.sleep(0.005)
    clerk.close()
    gaps = [b - a for a, b in itertools.pairwise(failures)]
    assert gaps[-1] > gaps[0] > 0.01
    assert len(turns) > 4


def test_a_clerk_without_duties_ends_at_once(platform: Platform) -> None:
    Clerk(platform, ()).close()
    assert "macadam-duties" not in {thread.name for thread in threading.enumerate()}


def test_closed_segments_are_sealed_and_an_idle_journal_leaves_no_leaf(platform: Platform) -> None:
    def seals() -> int:
        return len(platform.call(ShowLog(kind="journal.seal_segments")).entries)

    folder = sealing.folder_of(platform.settings.home, "flights")
    with JournalWriter(folder, gateway="g", worker=0, project="flights") as writer:
        writer.append(record.encode(PREDICTION)).answered()
        seal_journal(platform)
        assert seals() == 0
    seal_journal(platform)
    sealed = platform.call(ListSegments(project="flights"))
    assert [(segment.gateway, segment.count, segment.answers) for segment in sealed] == [("g", 1, 1)]
    seal_journal(platform)
    assert seals() == 1
