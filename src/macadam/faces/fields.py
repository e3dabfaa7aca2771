"""What each field of a request looks like from outside: its kind, default, choices and explanation.

The command line, HTTP paths and queries, and the reference pages all read requests through this module, so that
they agree. Checking values is the dispatcher's work; here text only becomes a plain JSON value of the field's kind.
"""

import re
import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import inspect

from macadam.errors import InvalidInput
from macadam.operations import Operation, Request

Kind = Literal["text", "integer", "number", "boolean", "list", "mapping", "json"]

_SCALARS: dict[type[inspect.Type], Kind] = {
    inspect.StrType: "text",
    inspect.DateTimeType: "text",
    inspect.DateType: "text",
    inspect.BytesType: "text",
    inspect.UUIDType: "text",
    inspect.EnumType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "boolean",
}
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a request.

    item: the kind of a list's items or of a mapping's values. default: its plain value, None if it is required.
    """

    name: str
    kind: Kind
    item: Kind = "text"
    required: bool
    default: object
    choices: tuple[str, ...]
    about: str
    type: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def shape(self) -> str:
        """The kind in words, for help and reference pages."""
        if self.choices:
            return " | ".join(self.choices)
        if self.kind == "list":
            return f"list of {self.item}"
        if self.kind == "mapping":
            return f"name → {self.item}"
        return self.kind


def of_request(request: type[Request[Any]]) -> tuple[Field, ...]:
    """The fields in the order of their declaration."""
    described = inspect.type_info(request)
    if not isinstance(described, inspect.StructType):
        raise TypeError(f"{request.__name__} is not a struct")
    about = explanations(request)
    return tuple(_field(request, field, about.get(field.name, "")) for field in described.fields)


def in_path(operation: Operation) -> tuple[str, ...]:
    """The names of the fields that stand in the operation's HTTP path, in its order."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(operation.path) if name)


def explanations(request: type[Request[Any]]) -> dict[str, str]:
    """What the request's docstring says about its fields, written there as `field: explanation`."""
    text = textwrap.dedent((request.__doc__ or "").partition("\n")[2])
    names = "|".join(re.escape(name) for name in request.__struct_fields__)
    if not names:
        return {}
    parts = re.split(rf"(?:(?<=\s)|^)({names}): ", " ".join(text.split()))
    return {name: said.strip().rstrip(".;") for name, said in zip(parts[1::2], parts[2::2], strict=True)}


def read(field: Field, text: str) -> object:
    """Turns one text into the plain value of the field's kind. Raises InvalidInput, naming the field."""
    if field.kind in ("json", "mapping", "list"):
        return _structured(field, text)
    return _scalar(field.name, field.kind, text)


def read_all(field: Field, texts: Sequence[str]) -> object:
    """Like `read` for a field that may be given several times: lists collect, mappings take `name=value` each.

    Raises InvalidInput for a second value of a field that holds one.
    """
    if field.kind == "mapping" and not texts[0].lstrip().startswith("{"):
        return dict(_pair(field, text) for text in texts)
    if field.kind == "list" and not texts[0].lstrip().startswith("["):
        return [_scalar(field.name, field.item, text) for text in texts]
    if len(texts) > 1:
        raise InvalidInput(
            f"{field.name} is given {len(texts)} times, expected once.", next_step=f"Give one {field.name}."
        )
    return read(field, texts[0])


def _field(request: type, field: inspect.Field, about: str) -> Field:
    plain, said = _unwrapped(field.type)
    kind, item, choices = _kind(plain)
    default: object = None
    if field.default is not msgspec.NODEFAULT:
        default = msgspec.to_builtins(field.default)
    elif field.default_factory is not msgspec.NODEFAULT:
        default = msgspec.to_builtins(field.default_factory())
    return Field(
        name=field.encode_name,
        kind=kind,
        item=item,
        required=field.required,
        default=default,
        choices=choices,
        about=about or said,
        type=_annotation(request, field.name),
    )


def _annotation(request: type, name: str) -> Any:
    hints = msgspec.structs.fields(request)
    return next(f.type for f in hints if f.name == name)


def _unwrapped(described: inspect.Type) -> tuple[inspect.Type, str]:
    """Takes away `| None` and annotations; returns the type in it and the annotation's description."""
    said = ""
    if isinstance(described, inspect.Metadata):
        said = str((described.extra_json_schema or {}).get("description", ""))
        described = described.type
    if isinstance(described, inspect.UnionType):
        members = [t for t in described.types if not isinstance(t, inspect.NoneType)]
        if len(members) == 1:
            inner, also = _unwrapped(members[0])
            return inner, said or also
    return described, said


def _kind(described: inspect.Type) -> tuple[Kind, Kind, tuple[str, ...]]:
    if isinstance(described, inspect.LiteralType) and all(isinstance(v, str) for v in described.values):
        return "text", "text", tuple(str(v) for v in described.values)
    if isinstance(described, inspect.EnumType):
        return "text", "text", tuple(str(member.value) for member in described.cls)
    if isinstance(described, _LISTS):
        item, _ = _unwrapped(described.item_type)
        kind = _SCALARS.get(type(item))
        return ("list", kind, ()) if kind else ("json", "json", ())
    if isinstance(described, inspect.DictType):
        item, _ = _unwrapped(described.value_type)
        kind = _SCALARS.get(type(item))
        return ("mapping", kind, ()) if kind else ("json", "json", ())
    if isinstance(described, inspect.UnionType) and all(_kind(_unwrapped(t)[0])[0] == "text" for t in described.types):
        return "text", "text", ()
    return _SCALARS.get(type(described), "json"), "text", ()


def _scalar(name: str, kind: Kind, text: str) -> object:
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "boolean":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except (ValueError, KeyError) as error:
        raise InvalidInput(
            f"{name} is {text!r}, expected {_article(kind)}.",
            next_step=f"Give {_article(kind)} for {name}.",
            details={"field": name},
        ) from error
    return text


def _article(kind: str) -> str:
    return {"integer": "a whole number", "boolean": "true or false"}.get(kind, f"a {kind}")


def _structured(field: Field, text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(
            f"{field.name} is not JSON: {error}.",
            next_step=f"Give {field.name} as JSON, or as @FILE with JSON in it.",
            details={"field": field.name},
        ) from error


def _pair(field: Field, text: str) -> tuple[str, object]:
    name, found, value = text.partition("=")
    if not found:
        raise InvalidInput(
            f"{field.name} is {text!r}, expected name=value or JSON.",
            next_step=f"Write {field.flag} name=value, once for each.",
            details={"field": field.name},
        )
    return name, _scalar(f"{field.name}.{name}", field.item, value)
