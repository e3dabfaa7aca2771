"""Catalogues as data: what is checked, which controls that bears on, and from which edition of which source.

Only identifiers and paraphrases of our own; the texts of controls belong to their publishers.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from macadam.lazy import lazy
from macadam.values import digest_of

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")


class Application(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when a part of a source applies. from_: ISO date."""

    what: str
    from_: str = msgspec.field(name="from")


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A framework's own document. read: the date on which the mapping was taken from it."""

    title: str
    url: str
    read: str
    applies: tuple[Application, ...] = ()


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point of the inspection. controls: framework → identifiers of the controls it bears on."""

    id: str
    check: str
    evidence: str
    controls: dict[str, tuple[str, ...]]


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An edition of the inspection. date: when it was made."""

    version: str
    date: str
    sources: dict[str, Source]
    points: tuple[Point, ...]


@lru_cache(maxsize=1)
def inspection() -> tuple[Catalogue, str]:
    """The 42 points, and the digest of the file that says so."""
    text = (Path(__file__).parent / "inspection.yaml").read_bytes()
    return msgspec.convert(yaml.safe_load(text), Catalogue), digest_of(text)
