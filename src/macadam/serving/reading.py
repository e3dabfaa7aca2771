"""Personal values of one prediction, for those who may see them: found beside the record, compared with it, decrypted."""

import msgspec

from macadam.errors import IntegrityError, NotAuthorised
from macadam.journal.layout import VERIFY
from macadam.journal.record import Personal, Prediction
from macadam.operations import Granted, Transaction
from macadam.personal import cipher, store
from macadam.personal.cipher import SubjectKey
from macadam.personal.sidecar import Sealed
from macadam.personal.vault import Vault
from macadam.serving import erasure
from macadam.serving.types import PersonalValues
from macadam.values import instant


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
    granted = _may_read(tx, told)
    if granted is None:
        said = f"These fields are personal: seeing them needs the permission {store.READ}."
        return PersonalValues(state="withheld", said=said, subject=told.personal.subject, fields=fields)
    return _opened(tx, granted, told, told.personal, segment)


def _may_read(tx: Transaction, told: Prediction) -> Granted | None:
    try:
        return tx.authorise(store.READ, f"project:{told.project}")
    except NotAuthorised:
        return None


def _opened(tx: Transaction, granted: Granted, told: Prediction, personal: Personal, segment: str) -> PersonalValues:
    keys = Vault(tx.ports.settings.home, tx.ports.secrets, told.project)
    subject, fields = bytes.fromhex(personal.subject), tuple(sorted(personal.fields))
    try:
        key = keys.of_subject(subject)
        sealed = store.find(granted, tx.ports, told.project, segment, told.id) if key is not None else None
        destroyed = sealed is None and keys.of_subject(subject) is None  # maybe since the first look
    finally:
        keys.close()
    if destroyed:
        said = "The key is destroyed; the erasure is under way. Run the same `macadam erase subject` again to end it."
        return PersonalValues(state="erased", said=said, subject=personal.subject, fields=fields)
    if key is None or sealed is None:
        raise _unlike(told, "is gone, and nobody erased it")
    values = _values(told, personal, key, sealed)
    return PersonalValues(state="readable", said="", subject=personal.subject, fields=fields, values=values)


def _values(told: Prediction, personal: Personal, key: SubjectKey, sealed: Sealed) -> dict[str, object]:
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
