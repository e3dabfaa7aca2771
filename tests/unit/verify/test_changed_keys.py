"""Bundles of a ledger that has changed its key: whoever holds the old key can follow, and is told so in words."""

import json
from typing import Any

import pytest
from unit.verify.chains import ORIGIN, SIGNER, Ledger, fields

from macadam.ledger import leaf, note, tree
from macadam_verify import __main__ as verifier
from macadam_verify import signed
from macadam_witness.notes import WitnessKey

NEXT = note.SignerKey(ORIGIN, bytes(range(64, 96)))
THIRD = note.SignerKey(ORIGIN, bytes(range(96, 128)))


def key_leaf(number: int, kind: str, key: note.SignerKey, **more: Any) -> dict[str, Any]:
    subject = f"ledger_key:{key.verifier.id.hex()}"
    return fields(number, kind, subject, project="", body={"key": str(key.verifier)}) | more


def announcement(leaves: list[dict[str, Any]], index: int, *signers: note.SignerKey) -> str:
    """The line for the last leaf of a small ledger."""
    datas = [leaf.canonical(one) for one in leaves]
    hashes = tree.hashes_of([tree.leaf_hash(data) for data in datas])
    signed = note.Checkpoint(origin=ORIGIN, size=len(datas), root=tree.root_at(len(datas), hashes))
    document = {
        "format": "macadam-key/1",
        "index": index,
        "leaf": datas[index].decode(),
        "path": [step.hex() for step in tree.inclusion_proof(index, len(datas), hashes)],
        "checkpoint": str(note.sign(str(signed), *signers)),
    }
    return json.dumps(document) + "\n"


ROTATED = key_leaf(0, "ledger.rotate_key", NEXT)
RETIRED = key_leaf(1, "ledger.retire_key", SIGNER)
FOLLOWED = announcement([ROTATED], 0, SIGNER, NEXT) + announcement([ROTATED, RETIRED], 1, NEXT)
NEW = Ledger(signers=(NEXT,)).bundle()
OLD_KEY = str(SIGNER.verifier)


def broken(report: verifier.Report) -> str:
    assert report.broken is not None
    return str(report.broken)


def test_a_bundle_that_only_a_later_key_signed_is_said_to_be_so() -> None:
    said = broken(verifier.verify(NEW, OLD_KEY, []))
    assert f"its key {NEXT.verifier.id.hex()} has, which may have taken over: see --announced" in said


def test_who_holds_the_old_key_follows_to_the_new_one() -> None:
    assert verifier.verify(NEW, OLD_KEY, [], FOLLOWED).broken is None
    both = Ledger(signers=(SIGNER, NEXT)).bundle()
    assert verifier.verify(both, OLD_KEY, []).broken is None, "while both sign, the old key is enough"
    third = announcement([ROTATED, RETIRED, key_leaf(2, "ledger.rotate_key", THIRD)], 2, NEXT, THIRD)
    assert verifier.verify(Ledger(signers=(THIRD,)).bundle(), OLD_KEY, [], FOLLOWED + third).broken is None


def test_a_retired_key_that_signs_on_is_refused() -> None:
    assert "was in force from 0 to 1" in broken(verifier.verify(Ledger().bundle(), OLD_KEY, [], FOLLOWED))
    listed = f"{OLD_KEY} until 1\n{NEXT.verifier} since 1\n"
    assert "was in force from 0 to 1" in broken(verifier.verify(Ledger().bundle(), listed, []))
    assert verifier.verify(NEW, listed, []).broken is None


FORGED = {
    "signed by nobody known": announcement([ROTATED], 0, NEXT),
    "of a leaf that announces nothing": announcement([ROTATED | {"kind": "models.log"}], 0, SIGNER),
    "of a refused call": announcement([ROTATED | {"outcome": "denied"}], 0, SIGNER),
    "of another key than its subject": announcement([ROTATED | {"subject": "ledger_key:00000000"}], 0, SIGNER),
    "with another path": announcement([ROTATED, RETIRED], 0, SIGNER).replace('"index": 0', '"index": 1'),
    "of no leaf": "{}",
    "that is no JSON": "nonsense",
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_announcement_is_refused(what: str) -> None:
    assert verifier.verify(NEW, OLD_KEY, [], FOLLOWED).broken is None
    assert verifier.verify(NEW, OLD_KEY, [], FORGED[what]).broken is not None


def test_a_retired_key_does_not_sign_over_the_leaf_that_ends_it() -> None:
    followed = announcement([ROTATED], 0, SIGNER, NEXT)
    for signers in ((SIGNER,), (SIGNER, NEXT)):
        alone = announcement([ROTATED, RETIRED], 1, *signers)
        assert "was in force from 0 to 1" in broken(verifier.verify(NEW, OLD_KEY, [], followed + alone))


def test_what_was_known_of_a_keys_end_is_only_made_earlier() -> None:
    later = announcement([ROTATED, RETIRED], 1, NEXT)
    trust = signed.trusted(f"{OLD_KEY} until 0\n{NEXT.verifier}\n")
    verifier.follow(later, trust)
    assert trust.keys[ORIGIN, SIGNER.verifier.id].until == 0


def test_a_witness_whose_key_the_ledger_took_for_its_own_is_none() -> None:
    witness = WitnessKey("witness.example", bytes(range(64, 96)))  # the private key of NEXT
    trust = signed.trusted(OLD_KEY, witness.verifier)
    text = str(note.Checkpoint(origin=ORIGIN, size=1, root=bytes(32)))
    cosigned = str(note.sign(text, SIGNER)) + witness.cosign(text, 1)
    assert signed.checkpoint(cosigned, trust, signed.Report())
    verifier.follow(announcement([ROTATED], 0, SIGNER, NEXT), trust)
    with pytest.raises(signed.Broken, match="0 of 1 cosigned"):
        signed.checkpoint(cosigned, trust, signed.Report())
