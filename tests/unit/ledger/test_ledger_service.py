"""Queueing and finding leaves, proofs, and what verification says about a ledger that is in order."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from unit.ledger.worlds import leaf, open_ports, queue, verify, with_port

from macadam.errors import InvalidInput, NotFound
from macadam.ledger import keys, problems
from macadam.ledger import service as ledger
from macadam.ledger.keyring import KeyRing
from macadam.ledger.leaf import decode
from macadam.ledger.publishing import CHECKPOINT_NAME
from macadam.ledger.schema import leaves, uses
from macadam.ledger.sequencer import integrate_all
from macadam.ports import Ports


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    opened = open_ports(tmp_path / "home")
    yield opened
    opened.sql.close()


def count(ports: Ports, table: sa.Table) -> int:
    with ports.sql.read() as sql:
        return sql.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_a_leaf_is_found_by_what_it_says_newest_first(ports: Ports) -> None:
    first, second = leaf("thing:a", uses=("thing:x", "thing:y", "thing:x")), leaf("thing:b", uses=("thing:y",))
    ports.sql.write(lambda sql: ledger.queue(sql, first, second))
    with ports.sql.read() as sql:
        assert [e.leaf for e in ledger.find(sql)] == [second, first]
        assert [e.leaf for e in ledger.find(sql, subject="thing:a")] == [first]
        assert [e.leaf for e in ledger.find(sql, using="thing:y")] == [second, first]
        assert [e.leaf for e in ledger.find(sql, using="thing:x", kind="tests.act", limit=5)] == [first]
        assert ledger.find(sql, project="elsewhere") == []
        assert [e.leaf for e in ledger.by_id(sql, [second.id, first.id])] == [first, second]
        entry = ledger.find(sql, limit=1)[0]
    assert (entry.index, decode(entry.text)) == (-1, second)
    assert count(ports, uses) == 3


def test_a_leaf_that_cannot_be_written_takes_its_transaction_with_it(ports: Ports) -> None:
    with pytest.raises(InvalidInput, match=r"\$\.body\.share"):
        ports.sql.write(lambda sql: (ledger.queue(sql, leaf()), ledger.queue(sql, leaf(share=0.5))))
    assert (count(ports, leaves), count(ports, uses)) == (0, 0)


def test_a_leaf_queued_twice_is_refused_and_undoes_only_itself(ports: Ports) -> None:
    once = leaf()
    ports.sql.write(lambda sql: ledger.queue(sql, once))
    with pytest.raises(sa.exc.IntegrityError):
        ports.sql.write(lambda sql: ledger.queue(sql, once))
    assert count(ports, leaves) == 1


def test_a_ledger_without_leaves_verifies_and_has_no_checkpoint(ports: Ports) -> None:
    assert integrate_all(ports) is None
    assert (verify(ports).problems, verify(ports).size) == ((), 0)
    with ports.sql.read() as sql, pytest.raises(NotFound, match="no checkpoint yet"):
        ledger.newest_checkpoint(sql)


def test_a_leaf_that_waits_for_its_checkpoint_has_no_proof_yet(ports: Ports) -> None:
    queue(ports, 2)
    integrate_all(ports)
    with pytest.raises(NotFound, match="not covered"):
        ledger.Prover(ports, 2).path(2)


def test_two_homes_opened_at_once_have_one_key(ports: Ports) -> None:
    ring = ledger.verifier_keys(ports)
    again = open_ports(ports.settings.home)
    (signer,) = keys.signers(again, [keys.KEY_SECRET])
    assert ledger.verifier_keys(again) == ring == KeyRing.of(signer.verifier)
    again.sql.close()


def test_a_kill_before_the_first_publishing_is_no_finding_and_a_missing_copy_later_is(ports: Ports) -> None:
    queue(ports, 1)
    integrate_all(ports)
    ports.objects.remove_name(CHECKPOINT_NAME)
    assert verify(ports).problems == ()
    queue(ports, 1)
    integrate_all(ports)
    ports.objects.remove_name(CHECKPOINT_NAME)
    assert verify(ports).problems == ("the published checkpoint is missing",)


def test_leaves_that_arrive_during_verification_are_no_finding(ports: Ports) -> None:
    queue(ports, 200)
    integrate_all(ports)
    found = []

    class Meanwhile:
        """The objects of a home in which others go on appending, once the tiles are looked at."""

        def __getattr__(self, name: str) -> object:
            return getattr(ports.objects, name)

        def names(self, prefix: str) -> object:
            if not found:
                found.append(prefix)
                queue(ports, 100)
                integrate_all(ports)
            return ports.objects.names(prefix)

    assert verify(with_port(ports, "objects", Meanwhile())).problems == ()
    assert verify(ports).size == 300


def test_verification_takes_no_more_memory_for_a_longer_ledger(ports: Ports) -> None:
    def peak() -> int:
        integrate_all(ports)
        tracemalloc.start()
        try:
            assert verify(ports).problems == ()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    queue(ports, 3000)  # more than two pages of rows
    short = peak()
    queue(ports, 9000, subject="more")
    # Held decoded, 9,000 leaves more would take some 20 MB; two pages of rows and what awaits collection take 3 MB.
    assert peak() < 2 * short


def test_of_very_many_problems_the_first_are_told_and_the_rest_is_counted(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "MOST", 3)
    queue(ports, 10)
    integrate_all(ports)
    ports.sql.write(lambda sql: sql.execute(sa.update(leaves).values(actor="principal:mallory")))
    said = verify(ports).problems
    assert len(said) == 4
    assert said[-1] == "and 7 more problems"
