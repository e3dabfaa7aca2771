"""Stands between the platform and a project's command: measures it, limits it, and takes it along when the platform dies.

Run by its path as a small process of its own (standard library only, no import of Macadam), so that the peak memory
that the kernel reports is the command's and not the platform's. Standard input is the life line: its end means that
the platform is gone.

Usage: launcher.py REPORT_FD TIMEOUT_SECONDS COMMAND...   (0 = no limit; the report is one JSON object)
"""

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time

GRACE = 3.0  # seconds between asking a command to end and ending it
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Runs the command in a process group of its own and writes the report."""
    report, timeout, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    os.set_inheritable(report, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the platform, which then ends the life line
    started = time.monotonic()
    child = _start(command)
    stopped: list[str] = []
    threading.Thread(target=_watch, args=(child, timeout, stopped), daemon=True).start()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    _signal_group(child, signal.SIGKILL)  # what it left in the background; its id is still taken, so it hits no other
    _, status, usage = os.wait4(child, 0)
    facts = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "stopped": "".join(stopped),
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    os.write(report, json.dumps(facts).encode())


def _start(command: list[str]) -> int:
    """Forks: a spawn could not tie the command's life to this process. One thread, so forking is safe."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606 - a command as words, no shell
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _watch(child: int, timeout: float, stopped: list[str]) -> None:
    """Ends the group at the time limit, or when the life line ends."""
    line_ended, _, _ = select.select([0], [], [], timeout or None)
    stopped.append("the platform ended" if line_ended else "time limit")
    _signal_group(child, signal.SIGTERM)
    time.sleep(GRACE)
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except (ProcessLookupError, PermissionError):  # it has ended; macOS says the latter of a group of zombies
        return


if __name__ == "__main__":
    main(sys.argv[1:])
