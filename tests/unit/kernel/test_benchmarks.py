"""The benchmarks as `make bench` finds them."""

import importlib

import pytest

from benchmarks import __main__ as frame


@pytest.mark.parametrize("name", frame.names())
def test_every_benchmark_can_be_run_by_its_name(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").run)
