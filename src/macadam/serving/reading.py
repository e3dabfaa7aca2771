"""Personal values of one prediction, for those who may see them: found beside the record, compared with it, decrypted."""

import msgspec

from macadam.errors import IntegrityError, NotAuthorised
from macadam.journal.layout import VERIFY
from macadam.journal.record import Personal, Prediction
from macadam.operations import Transaction
from macadam.personal import cipher, store
from macadam.personal.cipher import SubjectKey
from macadam.personal.vault import Vault
from macadam.serving import erasure
from macadam.serving.types import PersonalValues
from macadam.values import instant

READ = "personal:read"


def personal_values(tx: Transaction, told: Prediction, segment: str) -> PersonalValues | None:
    """None for a record without personal fields. segment: of the record, '' while it is not sealed.

    Raises IntegrityError if the ciphertext is not what the record commits to, or is gone though nobody erased it.
    """
    if not isinstance(told.personal, Personal):
        return None
    fields = tuple(sorted(told.personal.fields))
    done = erasure.of_subject(tx.sql, told.project, told.personal.subject)
    if done is not None:
        return PersonalValues(
            state="erased",
            said=f"Erased at {instant(done.at)} by {done.by}, certificate {done.id}.",
            subject=told.personal.subject,
            fields=fields,
            erased=done.at,
            certificate=done.id,
        )
    if not _may_read(tx, told):
        said = f"These fields are personal: seeing them needs the permission {READ}."
        return PersonalValues(state="withheld", said=said, subject=told.personal.subject, fields=fields)
    return _opened(tx, told, told.personal, segment, fields)


def _may_read(tx: Transaction, told: Prediction) -> bool:
    try:
        tx.authorise(READ, f"project:{told.project}")
    except NotAuthorised:
        return False
    return True


def _opened(
    tx: Transaction, told: Prediction, personal: Personal, segment: str, fields: tuple[str, ...]
) -> PersonalValues:
    home, secrets = tx.ports.settings.home, tx.ports.secrets
    keys = Vault(home, secrets, told.project)
    try:
        key = keys.of_subject(bytes.fromhex(personal.subject))
    finally:
        keys.close()
    if key is None:
        said = "The key is destroyed; the erasure is under way. Run the same `macadam erase subject` again to end it."
        return PersonalValues(state="erased", said=said, subject=personal.subject, fields=fields)
    values = _values(tx, told, personal, key, segment)
    return PersonalValues(state="readable", said="", subject=personal.subject, fields=fields, values=values)


def _values(tx: Transaction, told: Prediction, personal: Personal, key: SubjectKey, segment: str) -> dict[str, object]:
    sealed = store.find(tx.ports, told.project, segment, told.id)
    if sealed is None:
        raise _unlike(told, "is gone, and nobody erased it")
    found = {field.path: cipher.commitment(sealed.key_id, field.sealed) for field in sealed.fields}
    if found != personal.fields or sealed.key_id != key.key_id:
        raise _unlike(told, "is not what the record commits to")
    return {field.path: msgspec.json.decode(key.open(told.project, told.id, field)) for field in sealed.fields}


def _unlike(told: Prediction, what: str) -> IntegrityError:
    return IntegrityError(
        f"The ciphertext of the personal values of prediction {told.id} {what}.",
        next_step=VERIFY,
        details={"prediction": told.id},
    )
