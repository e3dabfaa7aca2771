"""What `macadam prove` says of a bundle before anybody verifies it."""

import msgspec
import pytest

from macadam.faces.evidence_verbs import unproved
from macadam_verify.__main__ import MAY_BE_ALLOWED_MISSING

ALL = ("version", "run", "evaluation", "thresholds", "gate", "approval")


def bundle(*roles: str) -> str:
    return msgspec.json.encode({"leaves": [{"role": role} for role in roles]}).decode()


def test_a_bundle_with_every_link_leaves_nothing_unproved() -> None:
    assert unproved(bundle(*ALL)) == ()


@pytest.mark.parametrize("role", ["evaluation", "thresholds", "gate", "approval"])
def test_a_link_that_is_missing_is_named_as_the_verifier_may_allow_it(role: str) -> None:
    assert unproved(bundle(*(one for one in ALL if one != role))) == (role,)
    assert role in MAY_BE_ALLOWED_MISSING
