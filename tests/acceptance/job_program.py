"""One real job of the live test. What it did is what it wrote, each line by one append, whatever becomes of its processes.

Usage: job_program.py PLACE KIND CODE STEPS SECONDS   (kind: work, retry, forever)

- locks/JOB is held while it runs, and one lock for each GPU that it sees: who does not get one writes to `violations`
- `began` gets a line with the step that it goes on from, `done` one when its work is at its end
- `again` gets a line if its work was at its end before, so that it only says so once more
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

TEMPORARY = 75


def append(place: Path, name: str, *words: object) -> None:
    line = " ".join(str(word) for word in words) + "\n"
    descriptor = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def hold(path: Path, how: int) -> bool:
    """For the process's life: the descriptor is left open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claim(place: Path, job: str, attempt: str) -> None:
    """Nobody else is this job, and nobody else has its GPUs."""
    if not hold(place / "locks" / job, fcntl.LOCK_EX):
        append(place, "violations", "twice at once", job, attempt)
    how = fcntl.LOCK_SH if "MACADAM_GPU_MILLI" in os.environ else fcntl.LOCK_EX
    for index in filter(None, os.environ["CUDA_VISIBLE_DEVICES"].split(",")):
        if not hold(place / "locks" / f"gpu-{index}", how):
            append(place, "violations", "gpu taken", index, job, attempt)


def main() -> None:
    place, kind, code, steps, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    job, attempt = os.environ["MACADAM_JOB"], os.environ["MACADAM_ATTEMPT_NUMBER"]
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    claim(place, job, attempt)
    kept = Path(os.environ["MACADAM_CHECKPOINT"])
    saved = kept / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    append(place, "began", job, attempt, step)
    if (place / "ends" / job).exists():
        append(place, "again", job, attempt)
        os._exit(code)
    while step < steps or kind == "forever":
        if asked:
            sys.exit(TEMPORARY)
        time.sleep(float(seconds))
        step += 1
        new = kept / "step.new"
        new.write_text(str(step))
        new.rename(saved)
    if kind == "retry" and not (kept / "tried").exists():
        (kept / "tried").touch()
        sys.exit(TEMPORARY)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Made by name, so that of two that come here at once one fails.
    try:
        os.close(os.open(place / "ends" / job, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        append(place, "violations", "ended twice", job, attempt)
    append(place, "done", job, attempt, code)
    os._exit(code)


if __name__ == "__main__":
    main()
