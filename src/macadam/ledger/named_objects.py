"""Looks at what leaves point at: objects by their digests, table snapshots by their files. Are they there, and the same?"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from macadam.errors import MacadamError
from macadam.ledger.leaf import Leaf
from macadam.ledger.problems import Problems
from macadam.ports import Ports
from macadam.values import DIGEST_PATTERN

# Facts of a leaf's body that name an object, at any depth: the bytes must still be there and be those.
OBJECT_FIELDS = ("artifact", "signature", "archive", "parquet", "text_object", "report", "history")
# Kinds of subject whose `digest` is that of an object: a training set's rows, an environment's lock.
OBJECT_SUBJECTS = ("training_set:", "environment:")
MOST_REMEMBERED = 50_000
"""Answers kept, so that what many leaves name is read once: some 15 MB."""

_DIGEST = re.compile(DIGEST_PATTERN)


class NamedObjects:
    """Give it each leaf. count: how many objects and table snapshots were read."""

    def __init__(self, ports: Ports, problems: Problems) -> None:
        self._ports = ports
        self._problems = problems
        self._known: OrderedDict[str, str] = OrderedDict()
        self.count = 0

    def check(self, leaf: Leaf) -> None:
        """A denied call's details name nothing that has to be there."""
        if leaf.outcome != "done":
            return
        for field, digest in _objects_of(leaf):
            problem = self._problem(digest, partial(self._ports.objects.get, digest))
            if problem:
                self._problems.add(f"{leaf.subject}: {field}: {problem}")
        place = leaf.body.get("metadata_location")
        if isinstance(place, str):
            problem = self._problem(place, partial(_verify_table, self._ports, leaf.body))
            if problem:
                self._problems.add(f"{leaf.subject}: {problem}")

    def _problem(self, name: str, look: Callable[[], object]) -> str:
        if name in self._known:
            self._known.move_to_end(name)
            return self._known[name]
        self.count += 1
        self._known[name] = _problem_of(look)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return self._known[name]


def _objects_of(leaf: Leaf) -> Iterator[tuple[str, str]]:
    """(field, digest) of each object that a leaf names."""
    digest = leaf.body.get("digest")
    if leaf.subject.startswith(OBJECT_SUBJECTS) and isinstance(digest, str):
        yield "digest", digest
    yield from _named_objects(leaf.body)


def _named_objects(body: object) -> Iterator[tuple[str, str]]:
    if isinstance(body, dict):
        for field, value in body.items():
            if field in OBJECT_FIELDS and isinstance(value, str) and _DIGEST.fullmatch(value):
                yield field, value
            else:
                yield from _named_objects(value)
    elif isinstance(body, list):
        for item in body:
            yield from _named_objects(item)


def _verify_table(ports: Ports, body: Mapping[str, object]) -> None:
    ports.tables.verify(str(body["metadata_location"]), str(body["snapshot_id"]), str(body["digest"]))


def _problem_of(look: Callable[[], object]) -> str:
    try:
        look()
    except MacadamError as error:
        return error.what
    return ""
