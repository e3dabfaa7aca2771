"""The documentation says what the code says: generated pages, links, examples."""

import re
import tomllib
from pathlib import Path

import pytest

from macadam import operations
from macadam.faces import cli, reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_the_reference_pages_are_those_that_the_code_gives() -> None:
    assert reference.stale(DOCS / "reference") == [], "run `make docs` and commit the result"


def test_a_stale_page_is_named(tmp_path: Path) -> None:
    assert cli.main(["docs", str(tmp_path)]) == 0
    assert cli.main(["docs", str(tmp_path), "--check"]) == 0
    (tmp_path / "cli.md").write_text("something else")
    assert reference.stale(tmp_path) == ["cli.md"]
    assert cli.main(["docs", str(tmp_path), "--check"]) == 7


def test_every_operation_and_field_is_in_the_reference() -> None:
    page = reference.pages()["operations.md"]
    for operation in operations.table().values():
        section = page.partition(f"### {operation.name}\n")[2].partition("\n#")[0]
        assert operation.http in section
        for name in operation.request.__struct_encode_fields__:
            assert f"| `{name}` |" in section


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_commands_that_pages_name_exist(page: Path) -> None:
    for words in re.findall(r"^(?:\$ )?macadam ([a-z][a-z -]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
        first, *rest = words.split()
        if first in cli.VERBS or " ".join([first, *rest[:1]]) in cli.GROUP_VERBS:
            continue
        assert first in operations.GROUPS, f"{page.name}: macadam {words}"
        assert rest, f"{page.name}: macadam {words}"
        assert f"{first} {rest[0]}" in {o.cli for o in operations.in_group(first)}, f"{page.name}: macadam {words}"


def test_commands_that_messages_name_exist() -> None:
    groups = "|".join(operations.GROUPS)
    known = {one.cli for group in operations.GROUPS for one in operations.in_group(group)} | set(cli.GROUP_VERBS)
    for source in sorted((ROOT / "src").rglob("*.py")):
        text = source.read_text(encoding="utf-8")
        for group, verb in re.findall(rf"macadam ({groups}) ([a-z][a-z-]*)", text):
            if f"{group} {verb}" != "ledger key":  # "macadam ledger key" is what the proofs' own notes call the key
                assert f"{group} {verb}" in known, f"{source.name}: macadam {group} {verb}"


def test_the_python_examples_for_tests_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "how-to" / "call-it-from-a-program.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_platform" in block]
    assert blocks
    for block in blocks:
        exec(compile(block, "how-to", "exec"), {})  # noqa: S102 - our own page


def test_every_dependency_has_its_reason() -> None:
    page = (DOCS / "explanation" / "dependencies.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=;\s\[]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b", page, re.MULTILINE), f"{name} has no row"


def test_architecture_has_two_sentences_for_every_floor() -> None:
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][
        0
    ]
    drawn = page.partition("```\n")[2].partition("```")[0].split("\n")
    assert [line for line in drawn if line] == floors["layers"]
    for layer in floors["layers"]:
        heading = "**" + layer.replace(" | ", ", ") + ".** "
        assert heading in page, heading
        said = page.partition(heading)[2].partition("\n\n")[0]
        assert len(re.findall(r"[.;:](?:\s|$)", said)) >= 2, heading
