"""Finds the operation of an HTTP method and path. A tree of path segments, built once from the table of operations."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from macadam.errors import NotFound
from macadam.faces.problem import MethodNotAllowed
from macadam.operations import Operation


@dataclass
class _Node:
    """One place in the tree. captures: the branch for a segment that is a field's value."""

    branches: dict[str, "_Node"] = field(default_factory=dict)
    captures: "_Node | None" = None
    methods: dict[str, Operation] = field(default_factory=dict)


class Routes:
    """operations: their paths are templates such as `/api/v1/projects/{project}/models`."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        for operation in operations:
            self._add(operation)

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        """The operation and its path fields, percent-decoded. path: as sent, still encoded.

        Raises NotFound, MethodNotAllowed (details: allow).
        """
        segments = path.strip("/").split("/")
        values: list[str] = []
        node = _walk(self._root, segments, 0, values)
        if node is None:
            raise NotFound(f"There is nothing at {path}.", next_step="See /openapi.json for what there is.")
        operation = node.methods.get(method)
        if operation is None:
            allow = sorted(node.methods)
            raise MethodNotAllowed(
                f"{path} takes {', '.join(allow)}, not {method}.",
                next_step="See /openapi.json for what there is.",
                details={"allow": allow},
            )
        return operation, dict(zip(_names(operation), map(unquote, values), strict=True))

    def _add(self, operation: Operation) -> None:
        node = self._root
        for segment in operation.path.strip("/").split("/"):
            if segment.startswith("{"):
                node.captures = node.captures or _Node()
                node = node.captures
            else:
                node = node.branches.setdefault(segment, _Node())
        node.methods[operation.method] = operation


def _walk(node: _Node, segments: list[str], at: int, values: list[str]) -> _Node | None:
    """Depth first, a literal segment before a captured one; `values` gets the captured segments."""
    if at == len(segments):
        return node if node.methods else None
    literal = node.branches.get(segments[at])
    if literal is not None and (found := _walk(literal, segments, at + 1, values)) is not None:
        return found
    if node.captures is None or not segments[at]:
        return None
    values.append(segments[at])
    if (found := _walk(node.captures, segments, at + 1, values)) is not None:
        return found
    values.pop()
    return None


def _names(operation: Operation) -> list[str]:
    return [s[1:-1] for s in operation.path.strip("/").split("/") if s.startswith("{")]
