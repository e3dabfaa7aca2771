"""What one caller may ask of the control plane: how often, how much at once, how deep."""

import time
from collections.abc import Iterator

import pytest

from macadam.access.types import LimitRate, ListRates
from macadam.app.platform import Platform
from macadam.ledger.types import ShowLog
from macadam.testing import Http, local_token, open_platform, token_of

SLOW = {
    "MACADAM_RATE": "0.01",
    "MACADAM_RATE_BURST": "5",
    "MACADAM_ANONYMOUS_RATE": "0.01",
    "MACADAM_ANONYMOUS_BURST": "3",
}
WHOAMI = "/api/v1/principals/self"


@pytest.fixture(scope="module")
def slow() -> Iterator[Platform]:
    with open_platform(environment=SLOW) as opened:
        yield opened


def statuses(http: Http, times: int, **how: str) -> list[int]:
    return [http.request("GET", WHOAMI, **how).status for _ in range(times)]


def test_a_principal_that_asks_too_fast_gets_429_and_is_told_when_to_come_back(slow: Platform) -> None:
    token, other = token_of(slow, "ann"), token_of(slow, "bob")
    with Http(slow) as http:
        first = http.request("GET", WHOAMI, token=token)
        assert first.headers["ratelimit-policy"] == '"default";q=5;w=500'
        assert first.headers["ratelimit"].startswith('"default";r=4;t=')
        assert statuses(http, 5, token=token) == [200] * 4 + [429]
        refused = http.request("GET", WHOAMI, token=token)
        assert refused.json()["code"] == "rate-limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 100
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        assert statuses(http, 1, token=other) == [200]


def test_calls_that_are_denied_count_so_that_a_principal_cannot_fill_the_ledger_with_denials(slow: Platform) -> None:
    token = token_of(slow, "carol")
    with Http(slow) as http:
        answers = [http.request("POST", "/api/v1/principals", token=token, body=b"{}").status for _ in range(9)]
        assert answers == [403] * 5 + [429] * 4
    asked = ShowLog(kind="access.create_principal", actor="principal:carol", outcome="denied")
    end = time.monotonic() + 10
    while len(slow.call(asked).entries) < 5 and time.monotonic() < end:
        time.sleep(0.05)  # the sequencer takes them up in its own time
    assert len(slow.call(asked).entries) == 5


def test_an_address_without_a_valid_token_is_limited_and_a_valid_token_from_there_is_not(slow: Platform) -> None:
    token = token_of(slow, "dan")
    with Http(slow, address="192.0.2.1") as http:
        assert statuses(http, 2) + statuses(http, 3, token="mcd_guessed") == [401, 401, 401, 429, 429]
        assert statuses(http, 1, token=token) == [200]
        http.address = "192.0.2.2"
        assert statuses(http, 1) == [401]


def test_an_administrator_sets_another_limit_for_one_principal(slow: Platform) -> None:
    token = token_of(slow, "eve")
    with Http(slow) as http:
        assert statuses(http, 6, token=token)[-1] == 429
        slow.call(LimitRate(principal="eve", per_second=0, burst=1))
        assert statuses(http, 20, token=token) == [200] * 20
        slow.call(LimitRate(principal="eve", per_second=0.01, burst=2))
        assert statuses(http, 3, token=token) == [200, 200, 429]
    rates = {rate.principal: rate.burst for rate in slow.call(ListRates())}
    assert rates["principal:eve"] == 2
    assert slow.call(ShowLog(kind="access.limit_rate")).entries[0].actor == "principal:local"


def test_requests_beyond_the_sizes_are_refused(slow: Platform) -> None:
    with Http(slow) as http:
        admin = local_token(slow)
        slow.call(LimitRate(principal="local", per_second=0, burst=1))
        limit = slow.settings.server.max_body
        assert http.request("GET", "/api/v1/projects/" + "x" * 5000, token=admin).status == 413
        assert http.request("GET", f"{WHOAMI}?a={'x' * 20_000}", token=admin).status == 413
        large = http.request(
            "POST", "/api/v1/projects", token=admin, body=b"{}", headers={"content-length": str(limit + 1)}
        )
        assert large.status == 413
        deep = b'{"project":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        assert http.request("POST", "/api/v1/projects", token=admin, body=deep).status == 400
        long_token = http.request("GET", WHOAMI, token="mcd_" + "x" * 1_000_000)
        assert long_token.status == 401
        assert statuses(http, 1, token=admin) == [200]
