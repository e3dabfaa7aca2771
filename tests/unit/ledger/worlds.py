"""A home with nothing but SQL, objects and keys, and leaves to put into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.postgres import Postgres
from macadam.adapters.sqlite import Sqlite
from macadam.ledger import service as ledger
from macadam.ledger import verification
from macadam.ledger.leaf import Leaf
from macadam.ledger.verification import Found
from macadam.ports import Ports
from macadam.settings import Settings
from macadam.values import digest_of, uuid7

DIGEST = digest_of(b"")
UNUSED: Any = None


def open_ports(home: Path, database: str = "") -> Ports:
    """database: URL of a Postgres database; '' is SQLite in the home."""
    for part in ("objects", "keys"):
        (home / part).mkdir(parents=True, exist_ok=True)
    settings = Settings.load({}, home=home)
    ports = Ports(
        settings=settings,
        sql=Postgres(database, settings.sql) if database else Sqlite(home / "macadam.sqlite", settings.sql),
        objects=LocalObjects(home / "objects"),
        secrets=LocalSecrets(home / "keys"),
        tables=UNUSED,
        online=UNUSED,
        runner=UNUSED,
        executor=UNUSED,
    )
    ports.sql.migrate()
    ledger.bootstrap(ports)
    return ports


def leaf(subject: str = "thing:a", *, uses: tuple[str, ...] = (), **body: object) -> Leaf:
    return Leaf(
        id=uuid7(),
        at="2026-11-21T07:00:00.000000Z",
        kind="tests.act",
        outcome="done",
        actor="principal:local",
        project="",
        subject=subject,
        uses=list(uses),
        request=DIGEST,
        decision={"id": uuid7(), "effect": "allow", "policies": ["p"], "policy_set": DIGEST},
        body=body,
    )


def queue(ports: Ports, count: int, *, subject: str = "thing") -> None:
    ports.sql.write(lambda sql: [ledger.queue(sql, leaf(f"{subject}:{n}")) for n in range(count)])


def verify(ports: Ports, *, since: str = "", deep: bool = False) -> Found:
    with ports.sql.read() as sql:
        return verification.verify(
            ports, sql, ledger.verifier_keys(ports), since=since, deep=deep, report=lambda _what, _done, _of: None
        )


class Killed(BaseException):
    """What a kill is to the code that it meets: nothing catches it."""


class Fragile:
    """A port that dies before or after the n-th call of one of its methods."""

    def __init__(self, port: Any, method: str, call: int, *, after: bool) -> None:
        self._port, self._method, self._left, self._after = port, method, call, after

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(self._port, name)
        if name != self._method:
            return real

        def call(*arguments: object) -> object:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            answer = real(*arguments)
            if self._left == 0:
                raise Killed
            return answer

        return call


def with_port(ports: Ports, name: str, port: object) -> Ports:
    held = {field: getattr(ports, field) for field in ports.__dataclass_fields__}
    return Ports(**{**held, name: port})
