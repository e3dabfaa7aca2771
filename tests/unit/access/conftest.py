"""A fresh home of access and ledger for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.access.homes import Door, ports_of

from macadam.access import service as access
from macadam.ledger import service as ledger
from macadam.ports import Ports


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    made = ports_of(tmp_path / "home")
    made.sql.migrate()
    ledger.bootstrap(made)
    access.bootstrap(made)
    yield made
    made.sql.close()


@pytest.fixture
def door(ports: Ports) -> Door:
    return Door(ports)
