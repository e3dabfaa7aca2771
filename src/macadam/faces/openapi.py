"""The OpenAPI 3.1 document, derived from the table of operations."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from macadam import __version__
from macadam.faces import fields, problem
from macadam.operations import Operation

_REFERENCE = "#/components/schemas/{name}"
_PROBLEM_STATUS = {
    "400": "The request does not fit; `details.field` names the field where one is at fault",
    "401": "No token, or one that is unknown, expired or revoked",
    "403": "No policy allows it; `details.policies` and `details.reason` say why",
    "404": "Something that the request names does not exist",
    "409": "The state moved, or the name is taken",
    "413": "The body is over the size limit",
    "503": "The same call may work later",
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, with what was got and expected"},
        "code": {"type": "string"},
        "next": {"type": "string", "description": "What to do about it"},
        "details": {"type": "object", "description": "Facts for scripts"},
    },
}


def document(operations: Iterable[Operation]) -> dict[str, object]:
    """The whole document as plain values."""
    known = list(operations)
    types = [t for o in known for t in (o.request, o.request.response_type())]
    schemas, components = _portable(
        msgspec.json.schema_components(types, schema_hook=_schema_of, ref_template=_REFERENCE)
    )
    paths: dict[str, dict[str, object]] = {}
    for number, operation in enumerate(known):
        request = _resolved(schemas[2 * number], components)
        row = _operation(operation, request, schemas[2 * number + 1])
        paths.setdefault(operation.path, {})[operation.method.lower()] = row
    return {
        "openapi": "3.1.0",
        "info": {"title": "Macadam", "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM_SCHEMA},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, request: Mapping[str, Any], response: object) -> dict[str, object]:
    named = fields.in_path(operation)
    rest = {name: schema for name, schema in request.get("properties", {}).items() if name not in named}
    required = [name for name in request.get("required", ()) if name in rest]
    row: dict[str, object] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Permission: `{operation.permission}`. Command: `macadam {operation.cli}`.",
        "tags": [operation.cli.split()[0]],
        "x-permission": operation.permission,
        "parameters": _parameters(operation, request, rest, required),
        "responses": _responses(response),
    }
    if operation.method not in ("GET", "DELETE"):
        body = {"type": "object", "properties": rest, "required": required, "additionalProperties": False}
        row["requestBody"] = {"required": bool(required), "content": {"application/json": {"schema": body}}}
    return row


def _parameters(
    operation: Operation, request: Mapping[str, Any], rest: Mapping[str, Any], required: list[str]
) -> list[dict[str, object]]:
    properties = request.get("properties", {})
    found: list[dict[str, object]] = [
        {"name": name, "in": "path", "required": True, "schema": properties.get(name, {"type": "string"})}
        for name in fields.in_path(operation)
    ]
    if operation.method in ("GET", "DELETE"):
        found += [{"name": n, "in": "query", "required": n in required, "schema": s} for n, s in rest.items()]
    if operation.changes:
        about = "A repeated call with the same key gets the first answer"
        found.append({"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}, "description": about})
    return found


def _responses(response: object) -> dict[str, object]:
    answers: dict[str, object] = {"200": {"description": "Done", "content": {"application/json": {"schema": response}}}}
    schema = {"schema": {"$ref": _REFERENCE.format(name="Problem")}}
    for status, about in _PROBLEM_STATUS.items():
        answers[status] = {"description": about, "content": {problem.MEDIA_TYPE: schema}}
    return answers


def _portable(schema: Any) -> Any:
    r"""The same with patterns as other languages read them (ECMA-262): their `$` is Python's `\Z`, and takes no newline."""
    if isinstance(schema, dict):
        return {
            name: value.replace(r"\Z", "$") if name == "pattern" and isinstance(value, str) else _portable(value)
            for name, value in schema.items()
        }
    return [_portable(one) for one in schema] if isinstance(schema, list | tuple) else schema


def _schema_of(kind: type) -> dict[str, Any]:
    """Schemas of types that JSON Schema has no word for. Raises NotImplementedError for those unknown here too."""
    if kind is object:
        return {"description": "Any JSON value"}
    if issubclass(kind, PurePath):
        return {"type": "string"}
    raise NotImplementedError(kind.__name__)


def _resolved(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref", "")
    found: Mapping[str, Any] = components[reference.rsplit("/", 1)[1]] if reference else schema
    return found
