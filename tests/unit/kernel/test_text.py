"""Text that a database cannot keep is refused at the door, on every database alike."""

from collections.abc import Iterator

import pytest
from databases import KINDS, environment

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.errors import InvalidInput, NotAuthorised
from macadam.ledger.types import ShowLog
from macadam.operations import of_request
from macadam.testing import open_platform, token_of


@pytest.fixture(params=KINDS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with open_platform(environment=environment(request.param)) as opened:
        yield opened


def test_nul_is_refused_in_any_text_and_a_backslash_in_front_of_u0000_is_not(platform: Platform) -> None:
    for text in ("a\0", "\\\0", {"deep": ["\0"]}):
        with pytest.raises(InvalidInput, match="NUL"):
            platform.dispatch(of_request(CreateProject), {"project": "a", "description": text})
    made = platform.call(CreateProject(project="a", description="\\u0000"))
    assert made.description == "\\u0000"


def test_a_denial_of_any_length_leaves_its_leaf(platform: Platform) -> None:
    token = token_of(platform, "ann")
    long = "ü" * 30_000
    with pytest.raises(NotAuthorised):
        platform.dispatch(of_request(CreateProject), {"project": long, "description": long}, token=token)
    (denied,) = [one for one in platform.call(ShowLog(actor="principal:ann")).entries if one.outcome == "denied"]
    assert denied.kind == "access.create_project"
    assert len(denied.project) < 1000
