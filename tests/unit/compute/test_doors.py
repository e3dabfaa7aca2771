"""Nobody sees, prices, changes or reads what is another project's: every operation on compute, one by one."""

from collections.abc import Iterator
from typing import get_origin

import pytest

from macadam import operations
from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.errors import InvalidInput, NotAuthenticated, NotAuthorised
from macadam.operations import Operation
from macadam.testing import open_platform, token_of

GROUPS = ("gpu", "cost", "budgets", "jobs", "quotas", "advice")
TABLE = [one for group in GROUPS for one in operations.in_group(group)]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with open_platform() as found:
        for project in ("ours", "theirs"):
            found.call(CreateProject(project=project))
        yield found


@pytest.fixture(scope="module")
def theirs(platform: Platform) -> str:
    """Of somebody who may do everything there is, in another project."""
    return token_of(platform, "theo", {"theirs": "admin"})


@pytest.mark.parametrize("operation", TABLE, ids=lambda one: one.cli)
def test_another_projects_administrator_gets_nothing_and_is_told_which_policy_says_so(
    operation: Operation, platform: Platform, theirs: str
) -> None:
    arguments = {"project": "ours"} if "project" in operation.request.__struct_fields__ else {"tenant": "ours"}
    with pytest.raises(NotAuthorised) as refused:
        platform.dispatch(operation, arguments, token=theirs)
    assert operation.permission in refused.value.what
    assert "theo" in refused.value.what
    assert refused.value.next_step
    assert "policy_set" in refused.value.details or "policies" in refused.value.details, refused.value.details


@pytest.mark.parametrize("operation", TABLE, ids=lambda one: one.cli)
def test_nobody_gets_anything_without_a_token(operation: Operation, platform: Platform) -> None:
    with pytest.raises(NotAuthenticated):
        platform.dispatch(operation, {"project": "ours"}, token="nobody's")


_LISTS = [one for one in TABLE if one.method == "GET" and get_origin(one.request.response_type()) is tuple]
# As long as what they list: a row for each project, each of its budgets, each device that was seen, each hour of it.
_AS_LONG_AS_IT_IS = {"quotas list", "quotas cohorts", "budgets list", "gpu list", "gpu usage"}


@pytest.mark.parametrize("operation", _LISTS, ids=lambda one: one.cli)
def test_a_list_that_grows_for_ever_has_a_limit_that_is_held(operation: Operation, platform: Platform) -> None:
    if operation.cli in _AS_LONG_AS_IT_IS:
        assert "limit" not in operation.request.__struct_fields__, "take it out of the exceptions"
        return
    for limit in (0, -1, 1_000_000_000):
        arguments = {"project": "ours"} if "project" in operation.request.__struct_fields__ else {}
        with pytest.raises(InvalidInput, match="limit"):
            platform.dispatch(operation, arguments | {"limit": limit})
