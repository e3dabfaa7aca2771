"""The certificate of an erasure: a signed note that says what was destroyed, and what was not.

Follows https://c2sp.org/signed-note with the ledger's key. Its second line is no number, so that it can never be taken
for a checkpoint. `python -m macadam_verify --certificate FILE --key FILE` reads it without Macadam.
"""

from macadam.ledger import note
from macadam.ledger.note import SignerKey
from macadam.personal.types import Erasure
from macadam.values import instant

FORMAT = "macadam-erasure/1"
KEYS_DESTROYED = (
    "the key of this person's values, and every copy of it that was wrapped with a project key before this erasure",
    "the ciphertext of this person's values beside the journal's segments and in the objects made of them",
)
ROWS_DESTROYED = ("the rows of the online feature store whose key names this person",)
REMAINS = (
    "the records themselves, which hold commitments and a random name in place of the values: proofs stay valid",
    "snapshots of tables and rows in quarantine, and training sets and models made from them",
    "labels that were fed back for predictions, under the predictions' ids",
    "files and databases that data was ingested from, and whatever callers keep of the answers they got",
    "backups of the home made before this erasure together with its keys",
    "pages that the online store and the disk have freed and not yet used again",
)


def text(facts: Erasure, ledger: str) -> str:
    """The note's text, a line for each fact. ledger: its name."""
    destroyed = (KEYS_DESTROYED if facts.subjects else ()) + (ROWS_DESTROYED if facts.online_rows else ())
    lines = [
        FORMAT,
        f"ledger: {ledger}",
        f"erasure: {facts.id}",
        f"project: {facts.project}",
        f"at: {instant(facts.at)}",
        f"by: {facts.by}",
        f"request: {facts.request or '-'}",
        f"leaf: {facts.leaf}",
        f"predictions: {facts.predictions}",
        f"online rows: {facts.online_rows}",
        f"keys rewrapped: {facts.keys_rewrapped}",
        *(f"subject: {name}" for name in facts.subjects),
        *(f"destroyed: {what}" for what in destroyed),
        *(f"not covered: {what}" for what in REMAINS),
    ]
    return "".join(f"{line}\n" for line in lines)


def sign(facts: Erasure, signer: SignerKey) -> str:
    """The certificate of what an erasure did."""
    return str(note.sign(text(facts, signer.name), signer))
