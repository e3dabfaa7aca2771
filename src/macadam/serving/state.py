"""What gateways know: endpoints and access, as one published object that is read without SQL.

Publishing it is for `publishing`, loading models for `runtime`.
"""

import msgspec

from macadam.access.engine import AccessSnapshot
from macadam.errors import NotFound
from macadam.journal.types import JournalPolicy
from macadam.ports import Objects
from macadam.serving.types import Deployment

NAME = "serving/state.json"


class ServingState(msgspec.Struct, frozen=True, kw_only=True):
    """generation: changes with anything in it. endpoints: by project, then name; journals: by project, where it is not
    the default; model_keys: PEMs of the keys whose signatures a model needs one of to be loaded.

    revocation_key: what the revocation list is signed with; revocation_number: of the list when this was written, so
    that a gateway which starts later takes no older one.
    """

    generation: str
    access: AccessSnapshot
    endpoints: dict[str, dict[str, Deployment]]
    journals: dict[str, JournalPolicy] = {}
    revocation_key: str = ""
    revocation_number: int = 0
    model_keys: tuple[str, ...] = ()


class _Generation(msgspec.Struct):
    generation: str


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ServingState).decode
_decode_generation = msgspec.json.Decoder(_Generation).decode


def decode(data: bytes) -> ServingState:
    """Raises msgspec.MsgspecError."""
    return _decode(data)


def published(objects: Objects) -> str:
    """The generation of the published state, '' if there is none that can be read."""
    try:
        return _decode_generation(objects.get_name(NAME)).generation
    except (NotFound, msgspec.MsgspecError):
        return ""
