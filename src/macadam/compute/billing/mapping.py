"""Whose a charge is: pure, by rules over its sub-account, resource and tags. What no rule gives to anybody is nobody's."""

import fnmatch
from collections.abc import Container, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.compute.billing.types import Mapping, Rule
from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa

    pc: Any  # its overloads do not follow columns whose types are known only at run time
else:
    pa = lazy("pyarrow")
    pc = lazy("pyarrow.compute")

_SEPARATOR = "\x1f"


def project_of(
    mapping: Mapping, projects: Container[str], sub_account: str, resource: str, tags: dict[str, str]
) -> str:
    """The project that a charge is charged to, '' for nobody. A tag or rule that names no project of this home gives none."""
    for rule in mapping.rules:
        if _matches(rule, sub_account, resource, tags):
            return rule.project if rule.project in projects else ""
    for key in mapping.tag_keys:
        value = tags.get(key, "")
        if value:
            return value if value in projects else ""
    return ""


def _matches(rule: Rule, sub_account: str, resource: str, tags: dict[str, str]) -> bool:
    return (
        _glob(sub_account, rule.sub_account)
        and _glob(resource, rule.resource)
        and all(tags.get(key) == value for key, value in rule.tags.items())
    )


def _glob(text: str, pattern: str) -> bool:
    return pattern in ("*", text) or ("*" in pattern and fnmatch.fnmatchcase(text, _escaped(pattern)))


@lru_cache(maxsize=4096)
def _escaped(pattern: str) -> str:
    """Only `*` is special: brackets and question marks occur in ids."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def tags_of(text: str) -> dict[str, str]:
    """The tags of a charge, from JSON. What is no text becomes its JSON, as a key may also have none or a number."""
    found = msgspec.json.decode(text or "{}", type=dict[str, Any])
    return {
        key: value if isinstance(value, str) else msgspec.json.encode(value).decode() for key, value in found.items()
    }


def projects_of(mapping: Mapping, projects: Iterable[str], rows: "pa.Table") -> "pa.Array[Any]":
    """The project of each row. Rows that say the same are asked once."""
    known = frozenset(projects)
    asked = [rows.column(name).combine_chunks() for name in ("sub_account", "resource", "tags")]
    joined: Any = pc.binary_join_element_wise(*asked, _SEPARATOR)
    encoded: Any = (joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined).dictionary_encode()
    found: list[str] = []
    for text in encoded.dictionary.to_pylist():
        sub_account, resource, tags = text.split(_SEPARATOR, 2)
        found.append(project_of(mapping, known, sub_account, resource, tags_of(tags)))
    return pa.array(found, pa.string()).take(encoded.indices)
