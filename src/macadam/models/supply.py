"""Signs what is registered and checks what is loaded: the platform's signing keys, and what a version was made from.

The private keys are secrets, the public ones rows that gateways get with the published state. The formats are in
`signing` and `provenance`, the operations in `supply_service`.
"""

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from macadam.errors import Conflict, NotFound
from macadam.ledger import service as ledger
from macadam.models import artifact, provenance, schema, signing
from macadam.models.provenance import Dependency
from macadam.models.signature import Signature
from macadam.models.types import ModelVersion, Run, SigningKey
from macadam.operations import Context, Transaction
from macadam.ports import Ports

_MOST_DEPENDENCIES = 500


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A run's model, signed and stored. signature and provenance: digests of the two bundles."""

    key: SigningKey
    signature: str
    provenance: str


# --- keys


def keys(sql: sa.Connection) -> tuple[SigningKey, ...]:
    """The platform's public keys, newest first: all of them are trusted, the first one signs."""
    t = schema.signing_keys
    return tuple(
        SigningKey(number=row.number, id=row.id, public=row.public, at=row.at)
        for row in sql.execute(sa.select(t).order_by(t.c.number.desc()))
    )


def trusted(sql: sa.Connection) -> tuple[str, ...]:
    """PEMs of the public keys."""
    return tuple(key.public for key in keys(sql))


def key_in_force(context: Context) -> tuple[SigningKey, bytes]:
    """The key that signs now, with its private half. A home's first one is made here, and announced with its first use."""
    with context.read() as sql:
        known = keys(sql)
    return make_key(context, known[0].number) if known else make_key(context, 1)


def make_key(context: Context, number: int) -> tuple[SigningKey, bytes]:
    """The key of that number, made if there is none. Two callers at once get the same one."""
    private = _secret(context.ports, f"model-signing-{number}")
    public = signing.public_key(private)
    return SigningKey(number=number, id=signing.key_id(public), public=public, at=context.call.now), private


def _secret(ports: Ports, name: str) -> bytes:
    try:
        return ports.secrets.get(name)
    except NotFound:
        private = signing.new_key()
    try:
        ports.secrets.put(name, private)
    except Conflict:  # another caller was first: then its key is the one
        return ports.secrets.get(name)
    return private


def announce(tx: Transaction, key: SigningKey) -> None:
    """Records a key that is new, before anything that it signed. The leaf has the key itself."""
    t = schema.signing_keys
    if tx.sql.execute(sa.select(t.c.number).where(t.c.number == key.number)).first():
        return
    tx.sql.execute(sa.insert(t).values(number=key.number, id=key.id, public=key.public, at=tx.now))
    stored = tx.ports.objects.put(key.public.encode())
    tx.record(f"signing_key:{key.id}", number=key.number, public=key.public, key_object=stored)


def signer_of(bundle: bytes, known: Iterable[SigningKey]) -> SigningKey:
    """Which of the keys signed a bundle. Raises IntegrityError."""
    for key in known:
        if f'"{key.id}"'.encode() in bundle:
            signing.open_bundle(bundle, (key.public,))
            return key
    raise signing.broken("was made with a key that this platform does not have")


# --- signing


def sign(context: Context, run: Run) -> Signed:
    """Signs a finished run's files and how they came to be. Nobody sees the two until a transaction names them."""
    key, private = key_in_force(context)
    files = artifact.files(run.artifact, run.signature)
    with context.read() as sql:
        made_from = dependencies(sql, run)
    platform = ledger.verifier_keys(context.ports).origin
    statement = provenance.statement(run, files, made_from, platform=platform)
    objects = context.ports.objects
    return Signed(
        key=key,
        signature=objects.put(signing.sign(signing.statement_of(run.model, files), private)),
        provenance=objects.put(signing.sign(statement, private)),
    )


def dependencies(sql: sa.Connection, run: Run) -> tuple[Dependency, ...]:
    """The run's training sets and what those were built from, down to the contracts, as the ledger has them."""
    found: dict[str, Dependency] = {}
    waiting = [*sorted(set(run.training_sets.values())), *run.snapshots]
    while waiting and len(found) < _MOST_DEPENDENCIES:
        ref = waiting.pop(0)
        if ref in found or not ref.startswith(("training_set:", "table:", "views:", "contract:")):
            continue
        newest = ledger.find(sql, subject=ref, project=run.project, outcome="done", limit=1)
        digest = newest[0].leaf.body.get("digest") if newest else None
        is_digest = isinstance(digest, str) and digest.startswith("sha256:")
        found[ref] = Dependency(ref=ref, digest=str(digest) if is_digest else "")
        waiting += newest[0].leaf.uses if newest else []
    return tuple(found.values())


# --- loading


def load(context: Context, version: ModelVersion) -> tuple[bytes, Signature]:
    """A version's bytes and signature, as they were signed. Raises IntegrityError, NotFound, InvalidInput."""
    with context.read() as sql:
        known = trusted(sql)
    return artifact.load_signed(
        context.authorise("models:read", f"model:{version.model}"),
        context.ports.objects,
        version.artifact,
        version.signature,
        version.model_signature,
        known,
        what=version.ref,
    )
