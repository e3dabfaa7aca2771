"""A project driven along the whole road by several people, and what the inspection then finds in its real evidence."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.delivery import flows, scaffold
from macadam.governance.types import Inspect
from macadam.models.types import Approve, Evaluate, ListEvaluations
from macadam.testing import open_platform

pytestmark = pytest.mark.slow


def commit(directory: Path) -> None:
    git = ["git", "-C", str(directory), "-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "Start"], check=True)


def somebody(platform: Any, name: str, role: str) -> str:
    made = platform.call(CreatePrincipal(principal=name))
    platform.call(GrantRole(project="shop", principal=made.id, role=role))
    return platform.call(IssueToken(principal=made.id)).token


def test_a_project_with_four_eyes_passes_what_can_be_checked_and_one_without_fails(tmp_path: Path) -> None:
    directory = scaffold.init(tmp_path, "shop")
    commit(directory)
    with open_platform(tmp_path / "home") as platform:
        assert flows.apply(platform, directory).state == "done"
        alone = {p.id: p for p in platform.call(Inspect(project="shop")).points}
        assert "who developed it" in alone["26"].detail
        assert "before any approval" in alone["27"].detail

        # The same version, evaluated and approved by others.
        measured = platform.call(ListEvaluations(project="shop", model="late-parcel"))[0]
        again = Evaluate(
            project="shop", model="late-parcel", version="1", training_set=measured.training_set, resamples=100
        )
        platform.call(again, token=somebody(platform, "bob", "developer"))
        approve = Approve(project="shop", model="late-parcel", version="1")
        platform.call(approve, token=somebody(platform, "carol", "approver"))
        found = {p.id: p for p in platform.call(Inspect(project="shop")).points}

    for point in ("01", "04", "07", "09", "14", "19", "20", "26", "40"):
        assert found[point].status == "pass", found[point]
    assert found["09"].population == 5
    assert found["14"].population == found["19"].population - 1 == 1
    # History stays: the deployment that came before its approval is still there.
    assert "before any approval" in found["27"].detail
    assert {point for point, result in found.items() if result.status == "fail"} == {"27"}
    for point in ("03", "34", "35"):
        assert found[point].status == "not_applicable"
    assert "consistent" in found["42"].detail
