import itertools
import threading
import time

from macadam.app.platform import Platform
from macadam.errors import Busy
from macadam.faces.duties import Clerk, Duty


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
