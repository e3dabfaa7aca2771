"""The pages for readers hold together: links lead somewhere, the README starts as its readers' scripts expect."""

import re
from pathlib import Path

import pytest

import macadam

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """What a heading is called in an address, as GitHub does it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if fragment:
            assert fragment in anchors(target), f"{page.name} links to {link}"


def test_the_readmes_first_two_commands_are_the_demo_and_the_tests() -> None:
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert blocks[:2] == [("sh", "make demo\n"), ("sh", "make test\n")]


def test_every_page_is_on_the_map() -> None:
    docs = ROOT / "docs"
    text = (docs / "index.md").read_text(encoding="utf-8")
    for page in docs.rglob("*.md"):
        name = page.relative_to(docs).as_posix()
        assert name == "index.md" or f"]({name})" in text, f"{name} is not on docs/index.md"


def test_the_picture_carries_its_own_description() -> None:
    picture = (ROOT / "docs" / "images" / "road.svg").read_text(encoding="utf-8")
    assert "<title" in picture
    assert "<desc" in picture
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize("name", macadam.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(macadam, name)
