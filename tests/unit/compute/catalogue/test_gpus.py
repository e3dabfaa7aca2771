"""The catalogue of GPUs: what is known by which name, and figures that could be a data sheet's."""

from datetime import date

import msgspec
import pytest

from macadam.compute.catalogue import gpus
from macadam.errors import InvalidInput, NotFound


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),  # NVML
        ("NVIDIA-H100-80GB-HBM3", "h100-sxm-80gb"),  # the label of GPU feature discovery
        ("nvidia-h100-80gb", "h100-sxm-80gb"),  # Google Cloud
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H200", "h200-sxm-141gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),  # the 480 GB are the processor's
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB-SHARED", "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("V100M32", "v100-sxm-32gb"),  # Alibaba's trace
        ("Tesla-T4", "t4-16gb"),
        ("A10G", "a10g-24gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("AMD Instinct MI300X OAM", "mi300x-192gb"),
        ("h100-sxm-80gb", "h100-sxm-80gb"),
    ],
)
def test_drivers_clouds_and_traces_are_understood(said: str, known: str) -> None:
    assert gpus.recognise(said) == known


@pytest.mark.parametrize(
    "said", ["", "G2", "G3", "H100", "A100", "V100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Voodoo 2"]
)
def test_what_could_be_several_products_or_only_a_part_of_one_is_unknown(said: str) -> None:
    assert gpus.recognise(said) == ""


def test_an_unknown_name_is_answered_with_those_that_are_close() -> None:
    with pytest.raises(NotFound) as error:
        gpus.find("A100")
    assert "a100-sxm-80gb" in error.value.next_step
    assert "h100" not in error.value.next_step


def test_no_two_products_share_a_name() -> None:
    seen: dict[str, str] = {}
    for gpu in gpus.gpus().values():
        for name in {gpus._plain(n) for n in (gpu.name, *gpu.names)}:
            assert seen.setdefault(name, gpu.name) == gpu.name
    assert len(gpus.gpus()) >= 25


def test_every_product_has_a_source_and_a_date_and_peaks_that_rise_as_formats_get_shorter() -> None:
    for gpu in gpus.gpus().values():
        assert gpu.source
        assert date.fromisoformat(gpu.dated) <= date(2026, 11, 21)
        order = [gpu.peak[f] for f in ("fp32", "tf32", "bf16", "fp8") if f in gpu.peak]
        assert order == sorted(order), gpu.name
        assert str(gpu.memory // 10**9) in gpu.name


@pytest.mark.parametrize(
    ("name", "bf16_tflops"),  # dense: what data sheets print with sparsity is twice as much
    [
        ("h100-sxm-80gb", 989.5),
        ("h200-sxm-141gb", 989.5),
        ("a100-sxm-80gb", 312),
        ("l4-24gb", 121),
        ("l40s-48gb", 362.05),
    ],
)
def test_peaks_are_without_sparsity(name: str, bf16_tflops: float) -> None:
    assert gpus.find(name).peak["bf16"] == pytest.approx(bf16_tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "mib"),  # the total that nvidia-smi prints, as seen in many public logs (2026-11-21)
    [
        ("t4-16gb", 15_360),
        ("l4-24gb", 23_034),
        ("l40s-48gb", 46_068),
        ("a100-sxm-40gb", 40_960),
        ("a100-sxm-80gb", 81_920),
        ("h100-sxm-80gb", 81_559),
        ("h200-sxm-141gb", 143_771),
        ("b200-sxm-180gb", 183_359),
    ],
)
def test_the_data_sheets_memory_is_there_whatever_the_driver_counts(name: str, mib: int) -> None:
    # What is said to fit by it fits; how full a device is follows from the total that its driver says.
    assert gpus.find(name).memory <= mib * 2**20 <= 1.08 * gpus.find(name).memory


def test_links_are_counted_in_one_direction() -> None:
    assert gpus.find("h100-sxm-80gb").link == 450e9  # of the 900 GB/s of the data sheet, both directions together
    assert gpus.find("h100-pcie-80gb").link == 0


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"bandwidth": float("nan")}, {"peak": {}}, {"peak": {"fp5": 1.0}}])
def test_a_product_with_an_impossible_figure_cannot_be_built(wrong: dict[str, object]) -> None:
    plain = msgspec.to_builtins(gpus.find("t4-16gb"))
    with pytest.raises(InvalidInput):
        gpus.Gpu(**{**plain, **wrong})
