"""Whatever stands where a proof, a note, a model's signature or a pickle should: a declared ending, and no false accept."""

import io
import json
import pickle
from collections import OrderedDict

from fuzz.mutate import fuzz, inputs
from unit.verify.chains import SIGNER, Ledger

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger import note
from macadam.models import pickles, safety, signing
from macadam_verify import __main__ as verifier

KEY = str(SIGNER.verifier)
BUNDLE = Ledger().bundle()
LEAVES = {entry["leaf"] for entry in json.loads(BUNDLE)["leaves"]}
STORY = verifier.verify(BUNDLE, KEY, []).story


def test_no_bundle_is_proved_that_says_what_the_ledger_and_the_journal_do_not() -> None:
    """What is accepted tells the same story, by leaves and a record that are in the signed tree, byte for byte."""

    def check(data: bytes) -> str:
        try:
            report = verifier.verify(data, KEY, [])
        except verifier.Unreadable as error:
            return str(error)[:30]
        if report.broken is not None:
            return report.broken.link
        found = json.loads(data)
        assert found["record"] == json.loads(BUNDLE)["record"]
        assert {entry["leaf"] for entry in found["leaves"]} <= LEAVES
        assert report.not_proved or report.story == STORY
        return "proved"

    assert check(BUNDLE) == "proved"
    words = [entry.encode() for entry in sorted(LEAVES)] + [b'"role"', b'"version"', b'"path"', b'"checkpoint"']
    ran = fuzz(check, [BUNDLE], count=inputs(2_500), words=words)
    assert len(ran.endings) > 8, ran.endings


TEXT = "macadam.test/log\n15\n" + "A" * 43 + "=\n"
SIGNED = note.Note(text=TEXT, signatures=(SIGNER.sign(TEXT),))


def test_no_note_is_taken_whose_text_its_key_did_not_sign() -> None:
    def check(data: bytes) -> str:
        try:
            parsed = note.Note.parse(data)
        except InvalidInput as error:
            return error.what[:30]
        assert str(parsed).encode() == data  # one spelling: what was read is what is kept
        signed = [s for s in parsed.signatures if s.name == SIGNER.name and s.id == SIGNER.verifier.id]
        if not any(SIGNER.verifier.signed(parsed.text, s.value) for s in signed):
            return "not signed"
        assert parsed.text == TEXT
        return "signed"

    assert check(str(SIGNED).encode()) == "signed"
    ran = fuzz(check, [str(SIGNED).encode()], count=inputs(6_000), words=["— ".encode(), b"\n\n", b"+"])
    assert ran.endings["not signed"] > 10


PRIVATE = signing.new_key()
PUBLIC = signing.public_key(PRIVATE)
FILES = {"model.onnx": "sha256:" + "a" * 64, "signature.json": "sha256:" + "b" * 64}
SIGNATURE = signing.sign(signing.statement_of("delay", FILES), PRIVATE)


def test_no_models_signature_is_taken_for_other_files_than_were_signed() -> None:
    wanted = signing.manifest_of(signing.open_bundle(SIGNATURE, (PUBLIC,)))

    def check(data: bytes) -> str:
        try:
            found = signing.manifest_of(signing.open_bundle(data, (PUBLIC,)))
        except IntegrityError as error:
            return error.what[:50]
        assert found == wanted
        return "signed"

    assert check(SIGNATURE) == "signed"
    ran = fuzz(check, [SIGNATURE], count=inputs(6_000), words=[b'"sig"', b'"payload"', b'"hint"'])
    assert len(ran.endings) > 6, ran.endings


def test_a_rightly_signed_statement_of_any_form_is_read_or_refused() -> None:
    """The signer is trusted with what it says, not to say it well: every payload here has a good signature."""
    statement = json.dumps(signing.statement_of("delay", FILES)).encode()

    def check(data: bytes) -> str:
        try:
            found = signing.manifest_of(signing._statement(data))
        except IntegrityError as error:
            return error.what[:50]
        assert all(not name.startswith("/") and ".." not in name.split("/") for name in found.files)
        return "read"

    assert check(statement) == "read"
    fuzz(check, [statement], count=inputs(6_000), words=[b'"resources"', b'"sha256"', b"../", b'"."'])


class Harmless:
    def __reduce__(self) -> tuple[object, ...]:
        return list, ((1, 2, 3),)


def test_whatever_python_would_unpickle_is_a_pickle() -> None:
    """The real machine is the judge: what it loads, or fails in only after a call, the walk has to find."""
    called: list[object] = []

    class Watched(pickle._Unpickler):  # in Python: the other allots memory for any index of its memo
        def find_class(self, module: str, name: str) -> object:
            if not (module and name) or any(c <= " " for c in module + name):  # no import takes these
                raise ModuleNotFoundError(module)

            def call(*arguments: object) -> object:
                called.append((module, name, len(arguments)))
                return OrderedDict()

            return call

    def check(data: bytes) -> str:
        called.clear()
        try:
            Watched(_reader(data)).load()
        except Exception as error:  # noqa: BLE001 - the machine fails as it likes
            ending = type(error).__name__
        else:
            ending = "loaded"
        found = pickles.is_pickle(data)
        assert found or not called
        if ending == "loaded" and data[:1] == b"\x80":
            assert found
        safety.scan(data, "x")
        return f"{ending} {found} {bool(called)}"

    values = [Harmless(), OrderedDict(a=1), {"a": [1.5, None]}, ("x", b"y" * 20)]
    corpus = [pickle.dumps(value, protocol) for value in values for protocol in range(6)]
    words = [b"R", b".", b"c", b"(", b"t", b"\x93", b"\x81", b"b", b"i", b"o", b"\x80\x04", b"\x8c\x02os", b"0", b"2"]
    ran = fuzz(check, corpus, count=inputs(6_000), words=words)
    assert any(ending.endswith("True True") for ending in ran.endings), ran.endings


def _reader(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)
