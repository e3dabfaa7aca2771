"""Prices at the terminal: a provider's list is imported, listed, and what studies reckon with."""

import argparse
import json
from pathlib import Path

import pytest

from macadam.access.types import CreateProject
from macadam.compute.catalogue import prices
from macadam.faces import price_list
from macadam.faces.cli import main
from macadam.faces.session import Session
from macadam.testing import Http, open_platform, token_of
from macadam.values import utc_now

HEADER = "provider,region,instance,gpu,gpus,kind,currency,dated,source,per_gpu_hour\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MACADAM_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_csv_is_imported_listed_first_and_decided_by(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "cheapco,north,box,H100 SXM,8,on-demand,USD,2026-11-01,our contract,0.75"
    (home / "ours.csv").write_text(HEADER + row + "\n")
    assert main(["projects", "create", "research"]) == 0
    capsys.readouterr()
    assert main(["cost", "prices", "import", "ours.csv", "--from", "csv", "--json"]) == 0
    taken = json.loads(capsys.readouterr().out)
    assert (taken["prices"], taken["by_kind"], taken["skipped"]) == (1, {"on-demand": 1}, {})
    assert main(["cost", "prices", "--project", "research", "--gpu", "H100 SXM", "--limit", "1", "--json"]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert (first["provider"], first["per_gpu_hour"], first["source"]) == (
        "cheapco", {"micros": 750_000, "currency": "USD"}, "our contract",
    )  # fmt: skip
    assert main(["decide", "train", "--example"]) == 0
    (home / "question.yaml").write_text(capsys.readouterr().out)
    assert main(["decide", "train", "--question", "question.yaml"]) == 0
    assert "cheapco box, machines of 8, 2026-11-01: our contract" in capsys.readouterr().out


def test_a_row_of_nonsense_is_named_at_the_terminal_and_nothing_is_taken(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "ours.csv").write_text(HEADER + "cheapco,north,box,H100 SXM,8,on-demand,USD,2026-11-01,ours,-1\n")
    assert main(["cost", "prices", "import", "ours.csv", "--from", "csv"]) != 0
    said = capsys.readouterr()
    assert "line 2, per_gpu_hour is '-1'" in said.out + said.err
    assert main(["cost", "prices", "import", "ours.csv", "--from", "papyrus"]) != 0


def test_prices_are_imported_and_asked_for_over_http(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text(HEADER + "cheapco,north,box,H100 SXM,8,spot,USD,2026-11-01,ours,0.75\n")
    with open_platform() as platform, Http(platform) as http:
        platform.call(CreateProject(project="research"))
        admin, viewer = token_of(platform, "ann", {"*": "admin"}), token_of(platform, "bob", {"research": "viewer"})
        asked = {"path": str(tmp_path / "ours.csv"), "from": "csv"}
        assert http.request("POST", "/api/v1/prices/file", token=viewer, json=asked).status == 403
        taken = http.request("POST", "/api/v1/prices/file", token=admin, json=asked)
        assert (taken.status, taken.json()["prices"]) == (200, 1)
        found = http.request("GET", "/api/v1/projects/research/prices?gpu=H100%20SXM&kind=spot&limit=1", token=viewer)
        assert [(one["provider"], one["stale"]) for one in found.json()] == [("cheapco", True)]
        asked |= {"from": "papyrus"}
        assert http.request("POST", "/api/v1/prices/file", token=admin, json=asked).status == 400


def test_a_study_makes_no_home_where_there_is_none(home: Path) -> None:
    with Session(argparse.Namespace()) as session:
        found = price_list.known(session, gpu="H100 SXM", kind="on-demand")
    assert found == tuple(one.price for one in prices.offers("H100 SXM", utc_now().date(), kind="on-demand"))
    assert list(home.iterdir()) == []
