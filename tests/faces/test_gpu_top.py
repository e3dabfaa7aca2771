"""The live picture: what it shows of a device, what it does not know, and that names from elsewhere are only text."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rich.console
from unit.compute.telemetry import fleets

from macadam.compute.billing.types import ImportPrices
from macadam.compute.catalogue.prices import Price
from macadam.compute.telemetry import recordings
from macadam.compute.telemetry.requests import Device, Holder
from macadam.compute.telemetry.types import Sample, from_table
from macadam.errors import InvalidInput
from macadam.faces import gpu_top
from macadam.faces.gpu_prices import Prices
from macadam.faces.gpu_top import sparkline
from macadam.faces.session import Session
from macadam.testing import local_token, open_platform
from macadam.values import Money

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ALONE = Prices(Session(argparse.Namespace(home="/nowhere/home")))
"""Where there is no platform to ask."""


def device(**changes: Any) -> Device:
    given: dict[str, Any] = {
        "device": "gpu:GPU-11111111-2222", "node": "n1", "model": "h100-sxm-80gb", "product": "NVIDIA H100 80GB HBM3",
        "at": NOW, "age": 1.0, "owners": (Holder(project="vision", owner="job:1", share=1.0),), "gpu_active": 0.9,
        "sm_active": 0.5, "tensor_active": 0.3, "dram_active": 0.2, "memory_used": 40 * 2**30, "memory_total": 80 * 2**30,
        "power": 500.0, "temperature": 60.0, "xid": None, "throttle": None, "energy_kwh": 0.1, "trend": (0.1, None, 1.0),
        "suspect": "", "error": "",
    }  # fmt: skip
    return Device(**{**given, **changes})


def drawn(*devices: Device, width: int = 220) -> str:
    console = rich.console.Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123 - for its text
    with console.file:
        console.print(gpu_top._table(gpu_top._priced(devices, NOW, ALONE), width))
        return console.export_text()


def test_a_device_is_shown_with_its_owner_and_what_it_costs_by_the_hour() -> None:
    text = drawn(device())
    for word in (
        "n1/GPU-11111111",
        "h100-sxm-80gb",
        "50%",
        "90%",
        "████░░░░ 40/80G",
        "500",
        "vision",
        "job:1",
        "USD/h, in part by list prices",
    ):
        assert word in text


def test_what_is_not_known_is_a_dash_and_never_nothing() -> None:
    text = drawn(device(model="", product="Prototype", sm_active=None, power=None, memory_used=None, owners=()))
    row = text.splitlines()[-1]
    assert "0%" not in row.replace("90%", "").replace("30%", "")
    assert row.count("—") == 5
    assert "nobody's" in row
    assert "no price known" in text


def test_what_is_not_believed_is_named_and_money_for_nobody_is_counted() -> None:
    text = drawn(device(suspect="profiling-off"), device(device="gpu:GPU-2", owners=()))
    assert "profiling-off" in text
    assert "1 not believed" in text
    assert "for nobody" in text


def test_a_name_from_elsewhere_is_neither_markup_nor_control() -> None:
    text = drawn(device(node="[red]x[/red]", owners=(Holder(project="p", owner="\x1b[2Jjob", share=0.5),)))
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "·[2Jjob 50%" in text


def test_a_trend_is_bars_with_gaps_where_nothing_was_measured() -> None:
    assert sparkline((0.0, None, 0.5, 1.0, 7.0)).endswith("▁·▅██")
    assert len(sparkline(())) == len(sparkline((0.1,) * 50))


def run(tmp_path: Path, recording: Path, **options: Any) -> int:
    chosen = argparse.Namespace(replay=str(recording), home=str(tmp_path / "home"), **options)
    with Session(chosen) as session:
        return gpu_top.VERB.run(chosen, session)


def test_a_replay_needs_neither_a_gpu_nor_a_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "seen.jsonl"
    recordings.append(recording, from_table(fleets.fleet(3, 300)))
    assert run(tmp_path, recording, speed=1e9) == 0  # live, to its end
    assert "00000002" in capsys.readouterr().out
    assert not (tmp_path / "home").exists()


def test_a_device_costs_what_jobs_are_charged_and_not_what_another_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_platform(tmp_path / "home") as platform:
        facts = {"provider": "own", "region": "cellar", "instance": "n1", "gpu": "h100-sxm-80gb", "gpus": 8}
        price = Price(**facts, kind="owned", per_gpu_hour=Money(micros=1_230_000), dated=NOW.date(), source="our books")  # type: ignore[arg-type]
        platform.call(ImportPrices(prices=(price,)))
        token = local_token(platform)
    seen = Sample(device="gpu:GPU-1", node="n1", product="NVIDIA H100 80GB HBM3", at=NOW, gpu_active=0.5)
    recordings.append(tmp_path / "seen.jsonl", [seen])
    assert run(tmp_path, tmp_path / "seen.jsonl", once=True, json=True, token=token) == 0
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert (row["hourly"]["micros"], row["price"], row["charged"]) == (1_230_000, "n1", True)
    assert run(tmp_path, tmp_path / "seen.jsonl", once=True, json=True, token=token, provider="aws") == 0
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert row["hourly"]["micros"] > 1_230_000


def test_a_recording_of_nothing_shows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "empty.jsonl").write_text("")
    assert run(tmp_path, tmp_path / "empty.jsonl", once=True) == 0
    assert "no device" in capsys.readouterr().out
    lost = Sample(device="gpu:GPU-9", at=NOW - timedelta(seconds=1), error="GPU is lost")
    recordings.append(tmp_path / "lost.jsonl", [lost])
    assert run(tmp_path, tmp_path / "lost.jsonl", once=True) == 0
    assert "GPU is lost" in capsys.readouterr().out


def test_a_live_picture_is_no_json_document(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no JSON"):
        run(tmp_path, tmp_path / "x.jsonl", json=True)


def test_a_narrow_terminal_shows_whole_numbers_or_none() -> None:
    long = Holder(project="vision", owner="job:0192f3aa-1111-7abc-8def-000000000001", share=1.0)
    text = drawn(device(owners=(long,), throttle=0x40), width=80)
    assert max(map(len, text.splitlines())) <= 80
    row = text.splitlines()[-1].split()
    assert row[:7] == ["11111111", "50%", "90%", "40/80G", "500", "60", "3.49"]
    assert "job:0192" in text
    assert "held by heat" in text
    assert "tensor" not in text


@pytest.mark.parametrize("width", [1, 20, 40, 60, 79, 100, 119, 150, 199])
def test_no_width_is_too_small_for_what_a_device_is_and_does(width: int) -> None:
    heads, cells = gpu_top._heads(gpu_top._priced((), NOW, ALONE)), [gpu_top._cells(row, narrow=True) for row in rows()]
    given = gpu_top._fitting(cells, heads, width)
    assert {0, 3} <= given.keys()
    assert gpu_top._space(given) <= max(width, 60)


def rows() -> list[gpu_top.Row]:
    return list(gpu_top._priced((device(suspect="stale"), device(throttle=4, xid=79)), NOW, ALONE).devices)


def test_clocks_that_are_held_down_and_errors_are_noted_and_doubt_comes_before_them() -> None:
    text = drawn(device(throttle=0x40 | 0x04, xid=79), device(throttle=1), device(throttle=0x40, suspect="stale"))
    assert "held by heat, power limit, Xid 79" in text
    assert text.count("held by") == 1
    assert "stale, not believed" in text


def test_a_slice_costs_its_part_and_what_has_no_price_is_counted() -> None:
    part = {"device": "gpu:GPU-2/mig:1", "model": "h100-sxm-80gb", "profile": "3g.40gb"}
    whole, half, unknown = gpu_top._priced(
        (device(), device(**part), device(**{**part, "profile": ""})), NOW, ALONE
    ).devices
    assert whole.hourly is not None
    assert half.hourly is not None
    assert half.hourly.micros == round(whole.hourly.micros / 2)
    assert unknown.hourly is None
    text = drawn(device(), device(**part), device(**{**part, "profile": ""}))
    assert "h100-sxm-80gb 3g.40gb" in text
    assert "1 without a price" in text


def test_a_gpu_that_no_list_prices_is_shown_without_a_price() -> None:
    text = drawn(device(model="t4-16gb"), device())
    assert "t4-16gb" in text
    assert "1 without a price" in text


def test_devices_are_sorted_by_what_is_asked_with_the_unknown_last() -> None:
    frame = gpu_top._priced(
        (device(power=None), device(power=100.0), device(power=600.0), device(power=100.0, node="z")), NOW, ALONE
    )
    by = gpu_top._sorted(frame, gpu_top._ORDERS["power"])
    assert [(row.device.power, row.device.node) for row in by.devices] == [
        (600.0, "n1"),
        (100.0, "n1"),
        (100.0, "z"),
        (None, "n1"),
    ]
