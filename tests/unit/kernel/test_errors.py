import re

import pytest

from macadam import errors
from macadam.errors import MacadamError
from macadam.faces import problem

TREE = [kind for kind in problem.classes() if kind.__module__ == "macadam.errors"]


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = dict(re.findall(r"─ (\w+)\s+(\d{3})", errors.__doc__ or ""))
    assert drawn == {kind.__name__: str(kind.status) for kind in TREE if kind is not MacadamError}


@pytest.mark.parametrize("kind", TREE, ids=lambda k: k.__name__)
def test_an_error_becomes_a_problem_and_back(kind: type[MacadamError]) -> None:
    error = kind("It broke.", next_step="Mend it.", details={"field": "x"})
    said = problem.of_error(error)
    assert said["status"] == kind.status
    again = problem.to_error(said, kind.status)
    assert (type(again), again.what, again.next_step, again.details) == (kind, "It broke.", "Mend it.", {"field": "x"})


def test_codes_are_unique_and_exit_codes_are_in_the_shells_range() -> None:
    codes = [kind.code for kind in problem.classes()]
    assert len(codes) == len(set(codes))
    assert all(0 < kind.exit_code < 126 for kind in problem.classes())


def test_the_text_of_an_error_ends_with_the_next_step() -> None:
    assert str(MacadamError("It broke.", next_step="Mend it.")) == "It broke. Next: Mend it."
    assert str(MacadamError("It broke.")) == "It broke."
