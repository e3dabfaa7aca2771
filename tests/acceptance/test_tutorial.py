"""The tutorial as a newcomer follows it: every command of the page, in order, in one shell."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "flights.md"
_BLOCK = re.compile(r"```sh( background)?\n(.*?)```", re.DOTALL)


def script(ports: tuple[int, int]) -> str:
    """The page's blocks as one script. Those for the second terminal run beside the others, until the end."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for background, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if background:
            lines.append(f"{text.strip()} > up.log 2>&1 &")
            lines.append("for _ in $(seq 100); do grep -q Healthy up.log && break; sleep 0.2; done")
        else:
            lines.append(text.strip())
    return "\n".join(lines).replace("8481", str(ports[1]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_does_what_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("raw", ".macadam", "__pycache__")
    )
    ports = (free_port(), free_port())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MACADAM_PORT": str(ports[0]),
        "MACADAM_GATEWAY_PORT": str(ports[1]),
        "MACADAM_JOURNAL_SEGMENT_AGE": "2",
    }
    shell = subprocess.Popen(
        ["bash", "-c", script(ports)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = shell.communicate(timeout=540)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
    assert shell.returncode == 0, out[-6000:]
    for said in (
        "27004 rows in, 26398 published, 606 quarantined",
        "waits for approval",
        "cannot approve it",
        '"prediction"',
        "PROVED",
        "BROKEN at record -> segment",
        "42 points",
    ):
        assert said in out, f"{said!r} is missing in:\n{out[-6000:]}"
