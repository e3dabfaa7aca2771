"""A home of access and ledger only, behind the real dispatcher, on a clock that tests move."""

from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import msgspec

from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.local_secrets import LocalSecrets
from macadam.adapters.sqlite import Sqlite
from macadam.app.dispatcher import Dispatcher
from macadam.ledger.leaf import Leaf, decode
from macadam.operations import Request, load, of_request
from macadam.ports import Ports
from macadam.settings import Settings
from macadam.values import utc_now


def ports_of(home: Path) -> Ports:
    for part in ("objects", "keys"):
        (home / part).mkdir(parents=True, exist_ok=True)
    settings = Settings.load({}, home=home)
    nothing = cast("Any", None)  # access never touches tables, online values or the runner
    return Ports(
        settings=settings,
        sql=Sqlite(home / "macadam.sqlite", settings.sql),
        objects=LocalObjects(home / "objects"),
        tables=nothing,
        online=nothing,
        runner=nothing,
        executor=nothing,
        secrets=LocalSecrets(home / "keys"),
    )


class Door:
    def __init__(self, ports: Ports) -> None:
        load("tokens")
        load("policy")
        self.ports = ports
        self.now = utc_now() + timedelta(seconds=1)
        self.dispatcher = Dispatcher(ports, clock=lambda: self.now, sequence=lambda: None)
        self.local = ports.secrets.get("local-token").decode()

    def call(self, request: Request[Any], token: str | None = None, *, key: str = "") -> Any:
        credential = self.local if token is None else token
        arguments = msgspec.to_builtins(request)
        return self.dispatcher.run(of_request(type(request)), arguments, token=credential, idempotency_key=key)

    def known(self, name: str, *roles: str, project: str = "*", scopes: tuple[str, ...] = (), days: int = 30) -> str:
        """Creates a principal with roles and returns a token of theirs."""
        made = self.call(CreatePrincipal(principal=name))
        for role in roles:
            self.call(GrantRole(project=project, principal=made.id, role=cast("Any", role)))
        return str(self.call(IssueToken(principal=made.id, scopes=scopes, days=days)).token)

    def leaves(self) -> list[Leaf]:
        with self.ports.sql.read() as sql:
            rows = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves ORDER BY seq").scalars()
            return [decode(bytes(row)) for row in rows]
