"""Each asset is asked for with no, a wrong, an expired and a right credential, at real servers; the ledger says who was
refused. And the places that read assets are those that ask.
"""

import ast
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from unit.serving import homes
from unit.serving.homes import ENDPOINT, INPUTS, MODEL, PATH, PROJECT

import macadam
from macadam.access.types import IssueToken
from macadam.app.platform import Platform
from macadam.errors import NotAuthorised
from macadam.operations import Decision, Granted
from macadam.serving.types import Deploy
from macadam.testing import token_of

_API = f"/api/v1/projects/{PROJECT}"
# Asset → how it is asked for. What a role that may would be answered: 200, or 404 where this home has none of it.
ASSETS = {
    "table read": ("GET", f"{_API}/tables/flights/preview"),
    "quarantine read": ("GET", f"{_API}/tables/flights/quarantine"),
    "feature read": ("GET", f"{_API}/views"),
    "online values": ("GET", f"{_API}/online"),
    "training set": ("GET", f"{_API}/training-sets"),
    "artifact load": ("GET", f"{_API}/models/{MODEL}/versions/1/files/model.onnx"),
    "journal read": ("GET", f"{_API}/journal/segments"),
    "prediction read": ("GET", f"{_API}/predictions/019aa0c4-5d3e-7000-8000-000000000000"),
    "ledger read": ("GET", f"{_API}/ledger/leaves"),
    "policies read": ("GET", f"{_API}/policies"),
}
MAY = {200, 404}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(
    furnished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, dict[str, str], Path]]:
    """Control plane, gateway, a token of each kind, and the home: two real servers for all probes."""
    home = tmp_path_factory.mktemp("probed") / "home"
    shutil.copytree(furnished, home)
    with homes.open_home(home) as platform:
        platform.call(Deploy(project=PROJECT, endpoint=ENDPOINT, model=MODEL, version="1"))
        tokens = {
            "none": "",
            "wrong": token_of(platform, "nora", {}),
            "right": token_of(platform, "olga", {PROJECT: "operator"}),
        }
        stale = platform.call(IssueToken(principal="olga", days=1))
        platform.ports.sql.write(
            lambda sql: sql.exec_driver_sql(
                f"UPDATE access_tokens SET expires = '2026-01-01T00:00:00.000000Z' WHERE id = '{stale.id}'"
            )
        )
        platform.ports.sql.write(lambda sql: sql.exec_driver_sql("UPDATE access_state SET generation = 'probed'"))
        tokens["expired"] = stale.token
    control, gate = free_port(), free_port()
    command = [sys.executable, "-m", "macadam.faces.cli", "up", "--home", str(home), "--port", control,
               "--gateway-port", gate]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    urls = f"http://127.0.0.1:{control}", f"http://127.0.0.1:{gate}"
    try:
        for url, path in zip(urls, ("/health", "/health/ready"), strict=True):
            end = time.monotonic() + 60
            while True:
                try:
                    if httpx.get(url + path, timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < end, f"{url} does not answer"
                time.sleep(0.1)
        yield (*urls, tokens, home)
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, method: str, path: str, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    body = {"inputs": INPUTS} if method == "POST" else None
    return httpx.request(method, url + path, headers=headers, json=body, timeout=20).status_code


@pytest.mark.parametrize("asset", [*ASSETS, "endpoint call"])
def test_an_asset_is_had_with_the_right_credential_and_with_no_other(
    served: tuple[str, str, dict[str, str], Path], asset: str
) -> None:
    control, gate, tokens, _ = served
    url, method, path = (gate, "POST", PATH) if asset == "endpoint call" else (control, *ASSETS[asset])
    got = {kind: ask(url, method, path, token) for kind, token in tokens.items()}
    assert {kind: got[kind] for kind in ("none", "wrong", "expired")} == {"none": 401, "wrong": 403, "expired": 401}
    assert got["right"] in MAY, got


def test_refused_readings_are_in_the_ledger_with_who_and_what(served: tuple[str, str, dict[str, str], Path]) -> None:
    control, _, tokens, home = served
    time.sleep(1.1)  # one leaf a second for each who is refused
    assert ask(control, "GET", f"{_API}/tables/flights/preview", tokens["wrong"]) == 403
    time.sleep(1.1)
    assert ask(control, "GET", f"{_API}/tables/flights/preview", tokens["expired"]) == 401
    with homes.open_home(home) as platform:
        denied = _denied(platform)
    assert ("data.preview_table", "principal:nora", "table:flights") in denied
    assert ("data.preview_table", "anonymous", "table:flights") in denied


def _denied(platform: Platform) -> set[tuple[str, str, str]]:
    with platform.ports.sql.read() as sql:
        rows = sql.exec_driver_sql("SELECT kind, actor, subject FROM ledger_leaves WHERE outcome = 'denied'")
        return {(row.kind, row.actor, row.subject) for row in rows}


# --- the map: which module reads which asset, and that nothing else does


def test_nothing_that_grants_is_made_without_a_decision_that_allows() -> None:
    refused = Decision(id="d", allowed=False, policies=("p",), policy_set="")
    with pytest.raises(NotAuthorised):
        Granted(refused, "tables:read", "table:flights")
    allowed = Granted(Decision(id="d", allowed=True, policies=("p",), policy_set=""), "tables:read", "table:flights")
    allowed.require("table:flights@7", "tables:read")
    for resource, permission in (("table:people", "tables:read"), ("table:flights", "quarantine:read")):
        with pytest.raises(NotAuthorised):
            allowed.require(resource, permission)


# What reaches an asset's bytes → the modules that may name it, and each of them asks. A new line here is a new way in.
READERS = {
    "tables.scan": {"data/reading.py"},
    "artifact.load": {"models/service.py"},
    "artifact.load_signed": {"models/supply.py", "serving/runtime.py"},
    "Granted": {"app/dispatcher.py", "serving/desk.py", "serving/runtime.py"},
}


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func).split(".")
            yield ".".join(words[-2:])


def test_assets_are_read_where_the_map_says_and_nowhere_else() -> None:
    source = Path(macadam.__file__).parent
    found: dict[str, set[str]] = {name: set() for name in READERS}
    for path in source.rglob("*.py"):
        place = path.relative_to(source).as_posix()
        if place.startswith("adapters/"):
            continue
        for called in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            if called in found:
                found[called].add(place)
    assert found == READERS
