"""What a fresh home gets, once."""

import multiprocessing
from pathlib import Path

from unit.access.homes import ports_of

from macadam.access import service as access
from macadam.access.authentication import token_digest
from macadam.access.policies import built_in
from macadam.ledger import service as ledger
from macadam.ledger.leaf import decode
from macadam.values import utc_now


def _open(home: str) -> None:
    ports = ports_of(Path(home))
    ports.sql.migrate()
    ledger.bootstrap(ports)
    access.bootstrap(ports)
    ports.sql.close()


def _leaves(home: Path) -> list[str]:
    ports = ports_of(home)
    with ports.sql.read() as sql:
        rows = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves WHERE kind LIKE 'access.%' ORDER BY seq")
        found = [decode(bytes(row)).subject for row in rows.scalars()]
    ports.sql.close()
    return found


def test_processes_that_open_a_fresh_home_at_once_agree_on_one_administrator(tmp_path: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    home = tmp_path / "home"
    racers = [fresh.Process(target=_open, args=(str(home),)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0, 0]
    assert _leaves(home) == [f"policy:{built_in().digest}", "principal:local"]
    ports = ports_of(home)
    with ports.sql.read() as sql:
        token = ports.secrets.get("local-token").decode()
        assert access.authenticate(sql, token, utc_now()).id == "principal:local"
        assert list(access.snapshot(sql).tokens) == [token_digest(token)]
    ports.sql.close()


def test_a_start_that_died_between_the_secret_and_the_database_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    ports = ports_of(tmp_path)
    ports.secrets.put("local-token", b"mcd_left-behind")
    ports.sql.migrate()
    ledger.bootstrap(ports)
    access.bootstrap(ports)
    with ports.sql.read() as sql:
        assert access.authenticate(sql, "mcd_left-behind", utc_now()).id == "principal:local"
    ports.sql.close()


def test_the_policies_in_force_are_an_object_under_the_digest_that_leaves_name(tmp_path: Path) -> None:
    _open(str(tmp_path))
    ports = ports_of(tmp_path)
    assert ports.objects.get(built_in().digest) == built_in().document
    ports.sql.close()


def test_the_secret_stands_nowhere_but_in_its_own_file(tmp_path: Path) -> None:
    _open(str(tmp_path))
    secret = (tmp_path / "keys" / "local-token").read_bytes()
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert holders == [tmp_path / "keys" / "local-token"]


def test_another_release_s_policies_take_force_and_are_recorded_as_following_the_old_ones(
    tmp_path: Path,
) -> None:
    _open(str(tmp_path))
    ports = ports_of(tmp_path)

    def age(sql: object) -> None:
        sql.exec_driver_sql("UPDATE access_policy_sets SET digest = 'sha256:" + "0" * 64 + "'")  # type: ignore[attr-defined]
        sql.exec_driver_sql("UPDATE access_state SET policy_set = 'sha256:" + "0" * 64 + "'")  # type: ignore[attr-defined]

    ports.sql.write(age)
    access.bootstrap(ports)
    with ports.sql.read() as sql:
        assert access.snapshot(sql).policy_set == built_in().digest
        last = sql.exec_driver_sql("SELECT leaf FROM ledger_leaves ORDER BY seq DESC LIMIT 1").scalar_one()
    assert decode(bytes(last)).uses == ["policy:sha256:" + "0" * 64]
    ports.sql.close()
