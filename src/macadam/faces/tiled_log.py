"""`/ledger/…`: the ledger for any client of a tiled log (https://c2sp.org/tlog-tiles), with no code of ours.

Checkpoints and tiles hold a size and hashes of leaves that nobody can guess (each has 148 random bits in its ids), so
they are for everyone unless MACADAM_OPEN_TILES says otherwise. Entry bundles are the leaves: they need ledger:read.
"""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from macadam.app.platform import Platform
from macadam.ledger import service as ledger
from macadam.ledger import tiled_log
from macadam.ledger.types import ShowCheckpoint
from macadam.operations import of_request

PREFIX = "/ledger/"
_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"
_YEAR = "max-age=31536000, immutable"
_GZIP_LEVEL = 5  # a full bundle in some 5 ms to a fifth of its size


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One static resource of the log."""

    body: bytes
    media_type: str
    headers: Sequence[tuple[bytes, bytes]]


class TiledLog:
    """Reads the resources of one platform's ledger. Blocks: call it in a thread."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._open = platform.settings.server.open_tiles

    def fetch(self, path: str, headers: Mapping[str, str], token: str) -> Resource:
        """path: below PREFIX. Raises NotFound, and NotAuthenticated or NotAuthorised for what is not for everyone."""
        entries = path.startswith(tiled_log.ENTRIES)
        if entries or not self._open:
            self._require_reader(token)
        if path == "checkpoint":
            with self._platform.ports.sql.read() as sql:
                note = ledger.newest_checkpoint(sql)[1]
            return Resource(body=note.encode(), media_type=_TEXT, headers=[(b"cache-control", b"no-store")])
        if not entries:
            return self._kept(tiled_log.hash_tile(self._platform.ports, path), shared=self._open)
        with self._platform.ports.sql.read() as sql:
            bundle = tiled_log.entry_bundle(sql, path)
        return _compressed(self._kept(bundle, shared=False), headers)

    def _require_reader(self, token: str) -> None:
        """Everybody's leaves: a role in one project is not enough."""
        self._platform.dispatcher.admit(of_request(ShowCheckpoint), {}, token)

    def _kept(self, body: bytes, *, shared: bool) -> Resource:
        """Bytes that never change. shared: whether a proxy may keep them for others."""
        said = f"{'public' if shared else 'private'}, {_YEAR}".encode()
        return Resource(body=body, media_type=_BYTES, headers=[(b"cache-control", said)])


def _compressed(resource: Resource, headers: Mapping[str, str]) -> Resource:
    """The spec asks for compressed bundles; a client that does not take gzip gets them as they are."""
    accepted = [part.strip().partition(";") for part in headers.get("accept-encoding", "").lower().split(",")]
    vary = (b"vary", b"accept-encoding")
    if not any(coding == "gzip" and weight.replace(" ", "") not in ("q=0", "q=0.0") for coding, _, weight in accepted):
        return Resource(body=resource.body, media_type=resource.media_type, headers=[*resource.headers, vary])
    return Resource(
        body=gzip.compress(resource.body, _GZIP_LEVEL, mtime=0),
        media_type=resource.media_type,
        headers=[*resource.headers, vary, (b"content-encoding", b"gzip")],
    )
