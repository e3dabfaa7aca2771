"""Operations on what vouches for versions: signatures, provenance, the files themselves, and the keys that sign."""

from macadam.errors import InvalidInput, NotFound
from macadam.models import artifact, registry, supply
from macadam.models.types import (
    Attestations,
    FilePart,
    ListSigningKeys,
    ModelVersion,
    ReadModelFile,
    RotateSigningKey,
    ShowAttestations,
    SigningKey,
)
from macadam.operations import Context, Transaction, operation

_VERSION = "/api/v1/projects/{project}/models/{model}/versions/{version}"
_KEYS = "/api/v1/signing-keys"
_PART = 8 * 1024 * 1024


def _version(context: Context, request: ShowAttestations | ReadModelFile) -> ModelVersion:
    with context.read() as sql:
        return registry.version(sql, request.project, request.model, request.version)


def _attestations(context: Context, request: ShowAttestations) -> Attestations:
    version, objects = _version(context, request), context.ports.objects
    if not version.model_signature or not version.provenance:
        raise NotFound(
            f"{version.ref} was registered without a signature.",
            next_step="Train and register it again, which signs it.",
        )
    signature = objects.get(version.model_signature)
    with context.read() as sql:
        keys = supply.keys(sql)
    key = supply.signer_of(signature, keys)
    return Attestations(
        ref=version.ref,
        model=version.model,
        number=version.number,
        files=artifact.files(version.artifact, version.signature),
        signature=signature.decode(),
        provenance=objects.get(version.provenance).decode(),
        key=key.public,
        key_id=key.id,
    )


@operation(
    ShowAttestations,
    permission="models:read",
    http=f"GET {_VERSION}/attestations",
    cli="models attestations",
    resource="model:{model}",
    prepare=_attestations,
)
def show_attestations(_tx: Transaction, _request: ShowAttestations, found: Attestations) -> Attestations:
    return found


def _part(context: Context, request: ReadModelFile) -> FilePart:
    version = _version(context, request)
    digest = artifact.files(version.artifact, version.signature)[request.file]
    data = context.ports.objects.get(digest)
    parts = max(1, -(-len(data) // _PART))
    if request.part >= parts:
        raise InvalidInput(f"{request.file} has {parts} parts.", next_step="Ask for parts from 0 on.")
    piece = data[request.part * _PART : (request.part + 1) * _PART]
    return FilePart(name=request.file, digest=digest, size=len(data), part=request.part, parts=parts, data=piece)


@operation(
    ReadModelFile,
    permission="models:export",
    http=f"GET {_VERSION}/files/{{file}}",
    cli="models file",
    resource="model:{model}",
    prepare=_part,
)
def read_model_file(_tx: Transaction, _request: ReadModelFile, found: FilePart) -> FilePart:
    return found


@operation(ListSigningKeys, permission="models:read", http=f"GET {_KEYS}", cli="models keys", resource="platform:home")
def list_signing_keys(tx: Transaction, _request: ListSigningKeys) -> tuple[SigningKey, ...]:
    return supply.keys(tx.sql)


def _next_key(context: Context, _request: RotateSigningKey) -> SigningKey:
    with context.read() as sql:
        known = supply.keys(sql)
    return supply.make_key(context, known[0].number + 1 if known else 1)[0]


@operation(
    RotateSigningKey,
    permission="models:rotate_key",
    http=f"POST {_KEYS}",
    cli="models rotate-key",
    resource="platform:home",
    prepare=_next_key,
)
def rotate_signing_key(tx: Transaction, _request: RotateSigningKey, key: SigningKey) -> SigningKey:
    """Two at once make one key: both get the same."""
    supply.announce(tx, key)
    return key
