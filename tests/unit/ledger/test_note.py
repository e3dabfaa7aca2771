"""Signed notes and checkpoints: the published example verifies, and nothing malformed gets through or crashes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError, InvalidInput, MacadamError
from macadam.ledger import note

# The example of golang.org/x/mod/sumdb/note, whose format C2SP's signed-note is.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SAID = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ORIGIN = "ledger.example/flights"
SIGNER = note.SignerKey(ORIGIN, bytes(32))
WITNESS = note.SignerKey("witness.example", bytes(range(32)))
CHECKPOINT = note.Checkpoint(origin=ORIGIN, size=42, root=bytes(range(32)))
SIGNED = note.sign_checkpoint(CHECKPOINT, SIGNER)


def test_the_published_example_verifies() -> None:
    key = note.VerifierKey.parse(PETER)
    assert str(key) == PETER
    read = note.Note.parse(SAID)
    assert str(read) == SAID
    assert note.verify(read, [key]) == [key]
    with pytest.raises(IntegrityError):
        note.verify(note.Note.parse(SAID.replace("answer", "Answer")), [key])


def test_a_checkpoint_is_the_lines_that_c2sp_describes() -> None:
    assert SIGNED.startswith(f"{ORIGIN}\n42\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— {ORIGIN} ")
    assert note.open_checkpoint(SIGNED, [SIGNER.verifier]) == CHECKPOINT
    assert note.open_checkpoint(SIGNED.encode(), [WITNESS.verifier, SIGNER.verifier]) == CHECKPOINT


def test_extension_lines_are_kept_and_signed() -> None:
    extended = note.Checkpoint(origin=ORIGIN, size=0, root=bytes(32), extensions=("time 1", "x"))
    signed = note.sign_checkpoint(extended, SIGNER)
    assert note.open_checkpoint(signed, [SIGNER.verifier]) == extended
    with pytest.raises(IntegrityError):
        note.open_checkpoint(signed.replace("time 1", "time 2"), [SIGNER.verifier])


def test_cosignatures_of_others_are_carried_along() -> None:
    cosigned = note.sign_checkpoint(CHECKPOINT, SIGNER, WITNESS)
    assert note.open_checkpoint(cosigned, [SIGNER.verifier]) == CHECKPOINT
    read = note.Note.parse(cosigned)
    assert note.verify(read, [WITNESS.verifier, SIGNER.verifier]) == [SIGNER.verifier, WITNESS.verifier]
    assert str(note.Note.parse(SIGNED).with_signatures(WITNESS.sign(read.text))) == cosigned


def test_a_cosignature_of_a_known_witness_must_be_right() -> None:
    wrong = note.Note.parse(SIGNED).with_signatures(WITNESS.sign("another text\n"))
    with pytest.raises(IntegrityError, match=r"witness\.example"):
        note.open_checkpoint(str(wrong), [SIGNER.verifier, WITNESS.verifier])


def test_a_checkpoint_that_only_a_witness_signed_is_refused() -> None:
    only = str(note.sign(str(CHECKPOINT), WITNESS))
    with pytest.raises(IntegrityError, match="only"):
        note.open_checkpoint(only, [SIGNER.verifier, WITNESS.verifier])
    with pytest.raises(IntegrityError, match="not signed by any"):
        note.open_checkpoint(only, [SIGNER.verifier])


def test_a_key_of_the_same_name_is_told_apart() -> None:
    other = note.SignerKey(ORIGIN, bytes([7]) * 32)
    with pytest.raises(IntegrityError, match="not signed by any"):
        note.open_checkpoint(SIGNED, [other.verifier])


def test_only_the_ledgers_own_key_signs_its_checkpoint() -> None:
    with pytest.raises(InvalidInput, match="cannot sign"):
        note.sign_checkpoint(CHECKPOINT, WITNESS)


def test_the_secret_reads_back_and_does_not_show() -> None:
    again = note.SignerKey.parse(SIGNER.secret)
    assert again.verifier == SIGNER.verifier
    assert str(again.sign("x\n")) == str(SIGNER.sign("x\n"))
    assert SIGNER.secret.rpartition("+")[2] not in repr(SIGNER)


@pytest.mark.parametrize(
    "line", ["", "PRIVATE+KEY+x", SIGNER.secret[:-4], SIGNER.secret + "!", SIGNER.secret.replace("flights", "other")]
)
def test_a_damaged_secret_is_refused_without_repeating_it(line: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        note.SignerKey.parse(line)
    assert not line or line[-20:] not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    ["", "x", "a+b", PETER[:-1], PETER.replace("c7", "c8"), PETER + "AA", PETER.replace("+AR", "+BR"), "+" + PETER],
)
def test_a_damaged_verifier_key_is_refused(line: str) -> None:
    with pytest.raises(InvalidInput):
        note.VerifierKey.parse(line)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "\u2003", "\x1b"])
def test_a_name_that_cannot_stand_on_a_signature_line_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        note.SignerKey(name, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "\n\n",
        "text\n",
        "text\n\n",
        "text\n\n— a AAAAAAA=",
        "text\n\n- a AAAAAAA=\n",
        "text\n\n— a AAAA\n",
        "text\n\n— a AAAAAAB=\n",
        "text\n\n— a+b AAAAAAA=\n",
        "text\n\n— a AAAAAAA= \n",
        "text\n\n—  AAAAAAA=\n",
        "te\rxt\n\n— a AAAAAAA=\n",
        "te\x00xt\n\n— a AAAAAAA=\n",
        "\ud800\n\n— a AAAAAAA=\n",
        "text\n\n" + "— a AAAAAAA=\n" * 101,
    ],
)
def test_a_malformed_note_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput):
        note.Note.parse(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        note.Note.parse(b"\xff\n\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "a\n1\n",
        "a\n01\n" + "A" * 43 + "=\n",
        "a\n-1\n" + "A" * 43 + "=\n",
        "a\n\u0661\n" + "A" * 43 + "=\n",
        "a\n1\n" + "A" * 42 + "B=\n",
        "a\n1\nAAAA\n",
        "\n1\n" + "A" * 43 + "=\n",
        "a\n1\n" + "A" * 43 + "=\n\n",
        "a\n1\n" + "A" * 43 + "=",
        "a\n1\n" + "A" * 42 + "\u00e9=\n",
    ],
)
def test_a_malformed_checkpoint_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput):
        note.Checkpoint.parse(text)


def test_a_checkpoint_that_cannot_be_is_not_built() -> None:
    for wrong in ({"size": -1}, {"size": 10**19}, {"root": b""}, {"origin": "a\nb"}, {"extensions": ("",)}):
        with pytest.raises(InvalidInput):
            note.Checkpoint(**({"origin": "a", "size": 1, "root": bytes(32)} | wrong))  # type: ignore[arg-type]


@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    changed = bytearray(SIGNED.encode())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((InvalidInput, IntegrityError)):
        note.open_checkpoint(bytes(changed), [SIGNER.verifier])


@given(st.text() | st.text("— aA=\n+1"))
def test_no_text_makes_reading_crash(text: str) -> None:
    for read in (note.Note.parse, note.Checkpoint.parse, note.VerifierKey.parse, note.SignerKey.parse):
        with contextlib.suppress(MacadamError):
            read(text)
