"""TLS with workload identities: contexts from certificate files that change under way, and who the other end is.

Both sides present X509-SVIDs. The chain is checked by the TLS library against the authorities of the trust domain; the
name is the SPIFFE id in the certificate, never a host name. Files are those that a SPIFFE agent writes (spiffe-helper's
`svid.pem`, `svid_key.pem`, `svid_bundle.pem`), whether Macadam or another authority issued them.
"""

import os
import ssl
from pathlib import Path

from macadam.access import spiffe
from macadam.access.spiffe import Peer, SpiffeId, Svid
from macadam.errors import NotAuthenticated, SettingInvalid

CERTIFICATES, KEY, AUTHORITIES = "svid.pem", "svid_key.pem", "svid_bundle.pem"


def write_durably(path: Path, data: bytes) -> None:
    """For its owner alone, and on the disk when this returns. Raises OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class Identity:
    """An own certificate and the authorities that are trusted, as files in a directory that somebody renews."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seen: tuple[int, ...] = ()

    def keep(self, svid: Svid, authorities: bytes) -> None:
        """Replaces the files; the key first and the certificate last, so that a half-done change is a pair that TLS
        refuses to load. All drafts are durable before the first replaces anything: after a kill, `_finish` goes on.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = ((AUTHORITIES, authorities), (KEY, svid.key), (CERTIFICATES, svid.certificates))
        for name, data in files:
            write_durably(self._draft(name), data)
        for name, _ in files:
            self._draft(name).replace(self.directory / name)

    def _draft(self, name: str) -> Path:
        return self.directory / f".{name}.draft"

    def _finish(self) -> None:
        """Ends a `keep` that was killed between the key and its certificate: that one's draft fits the new key."""
        draft = self._draft(CERTIFICATES)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(draft, self.directory / KEY)
        except (OSError, ssl.SSLError):
            return
        draft.replace(self.directory / CERTIFICATES)

    @property
    def certificates(self) -> bytes:
        """The own certificate and its chain (PEM). Raises SettingInvalid."""
        return self._read(CERTIFICATES)

    @property
    def authorities(self) -> bytes:
        """The certificates (PEM) that are trusted. Raises SettingInvalid."""
        return self._read(AUTHORITIES)

    @property
    def id(self) -> SpiffeId:
        return spiffe.named(self.certificates)

    def changed(self) -> bool:
        """Whether a file is another than at the last call that said so."""
        now = tuple(self._stamp(name) for name in (CERTIFICATES, KEY, AUTHORITIES))
        if now == self._seen:
            return False
        self._seen = now
        return True

    def context(self, *, server: bool, demands_client: bool = True) -> ssl.SSLContext:
        """A context for TLS 1.3 or newer. demands_client: whether a server takes only callers with a certificate.

        Raises SettingInvalid if the files are missing or do not belong together. A context is never added to: that
        would go on trusting an authority that is no longer among the files.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the name is the SPIFFE id, which `peer_of` reads
        context.verify_mode = ssl.CERT_REQUIRED if demands_client or not server else ssl.CERT_OPTIONAL
        try:
            self._load(context)
        except SettingInvalid:
            self._finish()
            self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.directory / CERTIFICATES, self.directory / KEY)
            context.load_verify_locations(cadata=self._read(AUTHORITIES).decode())
        except (OSError, ssl.SSLError, ValueError) as error:
            raise SettingInvalid(
                f"The certificate in {self.directory} cannot be used: {error}.",
                next_step=f"It needs {CERTIFICATES}, {KEY} and {AUTHORITIES} that belong together.",
            ) from error

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise SettingInvalid(
                f"{self.directory / name} cannot be read: {error.strerror}.",
                next_step="Enroll the workload, or set MACADAM_SVID_DIR to where the SPIFFE agent writes.",
            ) from error

    def _stamp(self, name: str) -> int:
        try:
            return (self.directory / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def joining_context(authorities: str) -> ssl.SSLContext:
    """For the one call that has no certificate yet: it trusts these authorities (PEM) and presents nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=authorities)
    return context


def peer_of(certificate: bytes | None) -> Peer:
    """Who presented this certificate (DER). Raises NotAuthenticated, also if none was presented."""
    if not certificate:
        raise NotAuthenticated("The other end presented no certificate.", next_step="Connect as a workload.")
    return spiffe.read_peer(certificate)
