"""A table of who may do what, in each way of writing it, held against policies."""

from pathlib import Path

import pytest

from macadam.access import policy_table
from macadam.access.policies import ProjectText, built_in
from macadam.errors import InvalidInput
from macadam.faces import cli

CARE = """@id("care-only")
forbid (principal, action == Action::"predictions:create", resource)
unless { context has purpose && context.purpose == "care" };
"""
PERSONAL = """@id("in-the-eu")
forbid (principal, action == Action::"tables:read", resource)
when { resource has classification && resource.classification == "personal" && context.time.weekday > 5 };
"""
MARKDOWN = """# Who may

| who | does | on | when | expect |
|---|---|---|---|---|
| caller | `predictions:create` | endpoint:delay | purpose=care | allow |
| service caller | predictions:create | endpoint:delay | | deny |
| nobody | models:read | model:m | | deny |
| developer + approver | approvals:give | model:m@1 | | allow |
| service admin | approvals:give | model:m@1 | | deny |
"""
CSV = """who,does,on,when,expect
viewer,tables:read,table:patients,"classification=personal, at=2026-11-21T10:00:00Z",deny
viewer,tables:read,table:patients,"classification=personal, at=2026-11-23T10:00:00Z",allow
viewer,tables:read,table:weather,at=2026-11-21T10:00:00Z,allow
"""
YAML = """
- {who: admin, does: "projects:create", on: "platform:home", expect: allow}

- who: viewer
  does: models:promote
  expect: allow
"""


def outcomes(name: str, table: str, policies: str = "") -> list[tuple[int, str, bool]]:
    own = ProjectText.of("flights", {"policies/a.cedar": policies}) if policies else None
    found = policy_table.hold(policy_table.read(name, table), "flights", built_in(), own)
    return [(one.line, one.got, one.held) for one in found]


def test_a_table_in_a_page_names_its_lines() -> None:
    assert outcomes("who.md", MARKDOWN, CARE) == [
        (5, "allow", True), (6, "deny", True), (7, "deny", True), (8, "allow", True), (9, "deny", True),
    ]  # fmt: skip
    assert outcomes("who.md", MARKDOWN)[1] == (6, "allow", False)


def test_circumstances_of_a_row_reach_the_policies() -> None:
    assert [got for _, got, held in outcomes("who.csv", CSV, PERSONAL) if held] == ["deny", "allow", "allow"]


def test_rows_in_yaml_name_their_lines() -> None:
    assert outcomes("who.yaml", YAML) == [(2, "allow", True), (4, "deny", False)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("boss,models:read,,,allow", "Line 2: there is no role boss"),
        ("viewer,models:raed,,,allow", "Line 2: there is no permission 'models:raed'"),
        ("viewer,models:read,,mood=good,allow", "Line 2: 'mood=good' is no circumstance"),
        ("viewer,models:read,,at=noon,allow", "Line 2: at=noon is no instant"),
        ("viewer,models:read,,,perhaps", "who.csv:2: the row does not fit"),
        ("", "has no rows"),
    ],
)
def test_a_row_that_means_nothing_is_refused_not_passed(row: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        outcomes("who.csv", f"who,does,on,when,expect\n{row}\n")


def test_the_command_needs_no_home_and_fails_on_the_first_row_that_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "who.md").write_text(MARKDOWN)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "care.cedar").write_text(CARE)
    assert cli.main(["policy", "test", "who.md", "--project", "flights"]) == 0
    (tmp_path / "policies" / "care.cedar").write_text(CARE.replace('"care"', '"cure"'))
    assert cli.main(["policy", "test", "who.md", "--project", "flights", "--json"]) == 1
    assert '"wrong": 1' in capsys.readouterr().out
    (tmp_path / "policies" / "care.cedar").write_text("permit (")
    assert cli.main(["policy", "test", "who.md", "--project", "flights"]) == 2
    assert "policies/care.cedar:1" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policies", "who.md"], "no home was made"
