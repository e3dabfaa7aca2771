import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam import operations
from macadam.delivery import project
from macadam.errors import SettingInvalid
from macadam.operations import Request, Transaction, operation
from macadam.ports import load


class Thing(Request[dict[str, int]], frozen=True, kw_only=True):
    """A thing."""


def test_a_request_names_its_answers_type() -> None:
    assert Thing.response_type() == dict[str, int]


def test_a_request_without_an_answers_type_is_an_error_of_the_declaration() -> None:
    class Bare(Request, frozen=True, kw_only=True):  # type: ignore[type-arg] # what is tested
        """Nothing said."""

    with pytest.raises(TypeError, match="Bare must derive from"):
        Bare.response_type()


def test_two_operations_cannot_share_a_path_or_a_command() -> None:
    taken = operations.in_group("projects")[0]
    for http, cli in ((taken.http, "things list"), ("GET /api/v1/things", taken.cli)):
        with pytest.raises(TypeError, match="share"):

            @operation(Thing, permission="things:read", http=http, cli=cli)
            def twin(_tx: Transaction, _request: Thing) -> dict[str, int]:
                return {}


def test_a_groups_order_does_not_depend_on_which_room_was_imported_first() -> None:
    program = (
        "import sys, importlib; importlib.import_module(sys.argv[1]);"
        "from macadam import operations; operations.load();"
        "print([o.name for group in operations.GROUPS for o in operations.in_group(group)])"
    )
    orders = {
        subprocess.run([sys.executable, "-c", program, first], capture_output=True, text=True, check=True).stdout
        for first in ("macadam.models.gate_service", "macadam.models.service", "macadam.serving.prediction_service")
    }
    assert len(orders) == 1


def test_every_group_is_declared_where_the_table_of_groups_says() -> None:
    for group, (modules, about) in operations.GROUPS.items():
        assert bool(operations.in_group(group)) == bool(modules), f"{group} has no operation"
        assert {o.handler.__module__ for o in operations.in_group(group)} <= set(modules), group
        assert about
        for module in modules:
            importlib.import_module(module)


def test_an_unknown_adapter_lists_those_that_exist() -> None:
    with pytest.raises(SettingInvalid, match="no adapter called 'postgress'") as refused:
        load("postgress")
    assert "sqlite" in refused.value.next_step


def _texts(kind: object, where: str, seen: frozenset[type]) -> Iterator[tuple[str, str]]:
    """(field, pattern) of every text with a pattern in a request, however deep."""
    if isinstance(kind, msgspec.inspect.StrType):
        if kind.pattern:
            yield where, kind.pattern
        return
    if isinstance(kind, msgspec.inspect.StructType):
        if kind.cls in seen:
            return
        seen |= {kind.cls}
    for name in getattr(kind, "__struct_fields__", ()):
        value = getattr(kind, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, msgspec.inspect.Field):
                yield from _texts(part.type, f"{where}.{part.name}", seen)
            elif isinstance(part, msgspec.inspect.Type):
                yield from _texts(part, where, seen)


def _patterns() -> dict[str, str]:
    requests = [o.request for o in operations.table().values()]
    found: dict[str, str] = {}
    for kind in (*requests, operations.Declared, project.Document):
        for where, pattern in _texts(msgspec.inspect.type_info(kind), kind.__name__, frozenset()):
            found.setdefault(pattern, where)
    return found


@settings(max_examples=40)
@given(data=st.data())
def test_no_text_that_a_request_takes_ends_in_a_newline(data: st.DataObject) -> None:
    """A `$` in a pattern matches before a newline at the end: the name would reach paths, leaves and headers with it."""
    found = _patterns()
    assert len(found) > 15
    for pattern, where in found.items():
        kind = Annotated[str, msgspec.Meta(pattern=pattern)]
        text = data.draw(st.from_regex(re.compile(pattern)), label=where)
        assert msgspec.convert(text, kind) == text, where
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text + "\n", kind)
