"""`macadam cost own` at the terminal."""

from pathlib import Path

import msgspec
import pytest

from macadam.access.types import CreateProject
from macadam.compute.billing.types import ImportPrices, ListPrices
from macadam.compute.catalogue.prices import Price
from macadam.faces.cli import main
from macadam.testing import open_platform
from macadam.values import Money

RACK = [
    "cost", "own", "--gpu", "NVIDIA H100 80GB HBM3", "--gpus", "8", "--capex", "30000", "--residual", "3000", "--years", "3",
    "--utilisation", "0.5", "--watts", "700", "--pue", "1.25", "--name", "rack-1",
]  # fmt: skip


def test_an_hour_of_ones_own_gpu_becomes_a_price_of_the_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.json"
    assert main([*RACK, "--per-kwh", "0.20", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0.2785 USD for an hour of one h100-sxm-80gb of rack-1.")
    assert f"macadam cost add-prices --prices @{out}" in said
    with open_platform() as platform:
        platform.call(CreateProject(project="ores"))
        platform.call(ImportPrices(prices=msgspec.json.decode(out.read_bytes(), type=tuple[Price, ...])))
        (offer,) = platform.call(ListPrices(project="ores", gpu="h100-sxm-80gb", kind="owned"))
    assert offer.per_gpu_hour == Money(micros=278_549)  # (27000 / 13149 h + 0.7 kW x 1.25 x 0.20) / 8
    assert "3 years, 50% used; 700 W at a PUE of 1.25" in offer.source


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--per-kwh", "dear"], "--per-kwh dear is no amount"),
        (["--per-kwh", "nan"], "--per-kwh nan is no amount"),
        (["--per-kwh", "0.2", "--years", "0"], "needs years above zero"),
        (["--per-kwh", "0.2", "--capex", "-5"], "A machine's price is -5.00 USD"),
        (["--per-kwh", "0.2", "--gpus", "0"], "no 0 parts"),
        (["--per-kwh", "0.2", "--gpu", "abacus"], "No GPU is known as 'abacus'"),
        (["--electricity", "atlantis"], "No business price of electricity of 'atlantis' is known"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_next_step(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RACK, *words]) in (2, 6)
    error = capsys.readouterr().err
    assert said in error
    assert "Next: " in error
