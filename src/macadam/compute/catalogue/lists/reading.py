"""Reads a provider's price list in the form that it is said to have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from macadam.compute.catalogue.lists import aws_list, aws_spot, azure, gcp, own_csv
from macadam.compute.catalogue.lists.found import Found, Progress, Source, Terms


class _Reader(Protocol):
    def __call__(self, path: Path, terms: Terms, progress: Progress, /) -> Found: ...


_READERS: Mapping[Source, _Reader] = {
    "aws-spot": aws_spot.read,
    "aws-price-list": aws_list.read,
    "azure-retail": azure.read,
    "gcp-skus": gcp.read,
    "csv": own_csv.read,
}


def read(source: Source, path: Path, terms: Terms, progress: Progress) -> Found:
    """Raises SourceInvalid, TooLarge, InvalidInput; rows that are refused are in the answer."""
    return _READERS[source](path, terms, progress)
