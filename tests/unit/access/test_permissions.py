"""The policies and the table of operations speak of the same permissions."""

from macadam import operations
from macadam.access.policies import built_in
from macadam.access.policies.compiled import compiled

# Asked for inside a handler, or by a gateway, instead of by an operation's declaration.
ASKED_ELSEWHERE = {"tokens:manage", "predictions:create", "predictions:replay", "personal:read", "link:serve"}


def test_every_permission_is_known_to_the_policies_and_every_action_is_used() -> None:
    declared = {operation.permission for operation in operations.table().values()}
    assert compiled(built_in()).actions == declared | ASKED_ELSEWHERE
