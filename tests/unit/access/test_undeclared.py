"""An operation that no policy knows is closed to everybody."""

from collections.abc import Iterator

import pytest
from unit.access.homes import Door

from macadam import operations
from macadam.errors import NotAuthorised
from macadam.operations import Request, Transaction, operation
from macadam.values import Name


class LaunchRocket(Request[str], frozen=True, kw_only=True):
    """Launch a rocket."""

    project: Name


@pytest.fixture
def scratch() -> Iterator[None]:
    """A new operation whose permission nobody has added to the policies."""

    @operation(LaunchRocket, permission="rockets:launch", http="POST /api/v1/projects/{project}/rockets",
               cli="rockets launch")  # fmt: skip
    def launch_rocket(_tx: Transaction, _request: LaunchRocket) -> str:
        raise AssertionError("it was carried out")

    yield
    declared = operations._by_request.pop(LaunchRocket)
    del operations._table[declared.name]


@pytest.mark.usefixtures("scratch")
def test_a_new_operation_without_a_policy_is_denied_to_the_administrator_and_recorded(door: Door) -> None:
    with pytest.raises(NotAuthorised, match="know no permission 'rockets:launch'"):
        door.call(LaunchRocket(project="flights"))
    last = door.leaves()[-1]
    assert (last.outcome, last.subject, last.actor) == ("denied", "project:flights", "principal:local")
    assert last.decision["effect"] == "deny"
