"""What the desk would bring after deciding, for tests that begin behind it."""

from macadam.operations import Decision, Granted

ALLOWED = Decision(id="d", allowed=True, policies=("test",), policy_set="")


def to_ask(endpoint: str) -> Granted:
    return Granted(ALLOWED, "predictions:create", f"endpoint:{endpoint}")


def to_see(project: str) -> Granted:
    """Personal values of a project's predictions."""
    return Granted(ALLOWED, "personal:read", f"project:{project}")
