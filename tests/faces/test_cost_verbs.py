"""`macadam cost waterfall | report` on a real home: figures that add up as they are printed, and a page that is safe to open."""

import html.parser
import json
import re
import xml.etree.ElementTree as ET

import pytest
from unit.compute.waterfall import test_allocation
from unit.compute.waterfall.clusters import charge, row, table

from macadam import testing
from macadam.compute.waterfall import cascade
from macadam.compute.waterfall.requests import Breakdown
from macadam.faces import cli, cost_report, cost_verbs
from macadam.testing import Clock


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    with testing.open_platform(folder / "home", clock=Clock(test_allocation.NOW)) as platform:
        test_allocation.furnish(platform, folder)
    return folder / "home"


def run(capsys, *words: str) -> tuple[int, str]:
    code = cli.main(["cost", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_printed_steps_add_up_to_the_printed_bill(home, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # so that no line is folded, whoever runs the test
    code, said = run(capsys, "waterfall", "--month", "2026-11", "--home", str(home))
    assert code == 0
    bill = float(re.search(r"all projects, 2026-11: ([\d.,]+) USD", said)[1].replace(",", ""))
    steps = said.split("by project")[0]
    amounts = [float(found.replace(",", "")) for found in re.findall(r" (-?[\d,]+\.\d\d) +-?[\d.]+%", steps)]
    assert len(amounts) > 4
    assert round(sum(amounts), 2) == bill
    assert "vision" in said


def test_json_is_one_document_and_a_picture_is_written_beside_it(home, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, said = run(
        capsys, "waterfall", "--month", "2026-11", "--by", "gpu", "--plot", "w.svg", "--json", "--home", str(home)
    )
    assert code == 0
    assert json.loads(said)["by"] == "gpu"
    assert ET.parse(tmp_path / "w.svg").getroot().get("role") == "img"  # noqa: S314 - our own output


def test_a_month_that_was_not_divided_says_how(home, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, "waterfall", "--month", "2026-10", "--home", str(home))
    assert code != 0
    assert "macadam cost allocate --month 2026-10" in said


def test_the_report_is_one_page_that_fetches_nothing(home, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _ = run(capsys, "report", "--month", "2026-11", "--out", "out", "--home", str(home))
    page = (tmp_path / "out" / "report.html").read_text()
    assert code == 0
    assert well_formed(page)
    assert "default-src 'none'" in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    assert page.count("<svg") >= 3
    assert "prefers-color-scheme" in page


def test_names_from_bills_and_telemetry_cannot_write_markup_into_the_report():
    evil = "<img src=x onerror=alert(1)>"
    usage = [row(owner=f"run:{evil}", project=evil), row(start=30, suspect=evil), row(start=99, owner=f"run:{evil}")]
    spread = cascade.spread([charge(10**7, hours=48, project=evil)], table(*usage))
    found = breakdown(spread)
    page = cost_report.page(found, found, [(whole, cost_verbs.bars(whole)) for whole in found.whole])
    assert "<img" not in page
    assert "&lt;img" in page
    assert well_formed(page)


def test_a_report_of_a_month_shows_its_trend_and_one_of_a_credit_is_drawn():
    charges = [charge(10**7, id="1", hours=24 * 20), charge(-(10**6), id="2", category="credit")]
    found = breakdown(cascade.spread(charges, table(*(row(start=hour) for hour in range(48)))))
    page = cost_report.page(found, found, [(whole, cost_verbs.bars(whole)) for whole in found.whole])
    assert "Day by day" in page
    assert "01 Oct" in page
    assert "credits" in page


def breakdown(spread: cascade.Spread) -> Breakdown:
    return Breakdown(
        project="*",
        month="2026-10",
        allocation="a",
        by="project",
        whole=cascade.waterfalls(spread),
        parts=cascade.waterfalls(spread, "project"),
        days=cascade.days(spread),
        uncharged=spread.uncharged,
        doubts=cascade.doubts(spread),
        flags=spread.flags,
    )


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ok = True

    def handle_starttag(self, tag, attrs):  # noqa: ARG002 - as the parser calls it
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        self.ok = self.ok and bool(self.open) and self.open.pop() == tag


def well_formed(page: str) -> bool:
    tags = _Tags()
    tags.feed(page)
    return tags.ok and not tags.open


def test_the_helper_of_this_page_sees_a_tag_that_is_not_closed():
    assert well_formed("<p>a</p>")
    assert not well_formed("<p>a")
