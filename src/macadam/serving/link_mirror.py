"""The far end of the link: keeps a home on another machine as the control plane wants it, so that a gateway serves from it.

State and models come in, closed journal segments go out, the certificate is renewed. The gateway itself knows nothing of
it: it reads its own home, and serves on from what is there while the link is down.
"""

import http.client
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from macadam.access import revocation, spiffe
from macadam.access.spiffe import SpiffeId, Svid
from macadam.access.tls import Identity, joining_context, peer_of, write_durably
from macadam.access.types import Certified, DenialReport
from macadam.errors import (
    Conflict,
    IntegrityError,
    InvalidInput,
    MacadamError,
    NotAuthenticated,
    NotAuthorised,
    NotFound,
    Temporary,
    Unavailable,
)
from macadam.journal.layout import ANSWERS, CLOSED, read_answers, sync_directory
from macadam.ports import Objects
from macadam.serving import denials, state
from macadam.serving.link_service import Delivered, LinkedObject, LinkState, objects_of
from macadam.values import Name, utc_now

T = TypeVar("T")
JOINED = "joined.json"
_TIMEOUT = 20.0
_RENEWAL_SECONDS = 300.0
"""Between two renewals: a clock that is hours ahead must not ask at every look."""
_MOST_ANSWER = 1 << 30
"""Bytes: a model in base64."""
_ERRORS: dict[int, type[MacadamError]] = {
    400: InvalidInput,
    401: NotAuthenticated,
    403: NotAuthorised,
    404: NotFound,
    409: Conflict,
    413: InvalidInput,
    422: InvalidInput,
    500: IntegrityError,
}
_log = logging.getLogger(__name__)


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Where a linked home belongs. server: the SPIFFE id that the control plane must show; external: who renews."""

    url: str
    server: str
    workload: str
    external: bool = False


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """What `macadam workloads enroll` says, as far as joining needs it."""

    workload: str
    spiffe_id: str
    join: str
    authorities: str


class Link:
    """One connection to the control plane, opened again when it breaks. For one thread at a time."""

    def __init__(self, url: str, server: SpiffeId, context: Callable[[], ssl.SSLContext]) -> None:
        """Raises InvalidInput unless the URL is https://HOST:PORT."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/"):
            raise InvalidInput(f"{url!r} is no link.", next_step="Give it as https://HOST:PORT.")
        self._host, self._port = parts.hostname, parts.port or 443
        self._server = server
        self._context = context
        self._connection: http.client.HTTPSConnection | None = None

    def call(self, method: str, path: str, body: object = None, *, token: str = "") -> bytes:
        """The answer's body. Raises Unavailable if the control plane cannot be reached, else what it refused with."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else msgspec.json.encode(body)
        try:
            connection = self.connected()
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            whole = answer.read(_MOST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        if answer.will_close:
            self.close()
        if answer.status != http.client.OK:
            raise _refusal(answer.status, whole)
        return whole

    def close(self) -> None:
        """Drops the connection; the next call opens one, with the certificate of then."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def connected(self) -> http.client.HTTPSConnection:
        """Opens a connection if there is none. Raises NotAuthenticated if the other end is not the control plane."""
        try:
            return self._connection or self._open()
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unavailable:
        self.close()
        return Unavailable(
            f"The control plane at {self._host}:{self._port} does not answer: {error}.",
            next_step="It is tried again; look whether `macadam up` runs there with MACADAM_LINK_PORT.",
        )

    def _open(self) -> http.client.HTTPSConnection:
        """Raises NotAuthenticated if the other end is not the control plane, whatever authority vouches for it."""
        made = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=self._context())
        made.auto_open = 0  # it would open another one by itself, and not look who is there
        made.connect()
        try:
            self._require_server(made)
        except NotAuthenticated:
            made.close()
            raise
        self._connection = made
        return made

    def _require_server(self, made: http.client.HTTPSConnection) -> None:
        certificate = made.sock.getpeercert(binary_form=True) if isinstance(made.sock, ssl.SSLSocket) else None
        peer = peer_of(certificate)
        if peer.id != self._server:
            raise NotAuthenticated(
                f"The other end is {peer.id}, expected {self._server}.",
                next_step="Do not send it anything; check the link's URL.",
            )


def _refusal(status: int, body: bytes) -> MacadamError:
    try:
        said = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        said = {}
    kind = _ERRORS.get(status, Unavailable)
    return kind(str(said.get("detail", f"The control plane answered {status}.")), next_step=str(said.get("next", "")))


def join(home: Path, url: str, invitation: Invitation) -> Joined:
    """Gets the first certificate and remembers where this home belongs. Raises like `Link.call`."""
    identity = Identity(home / "link")
    mine = SpiffeId.parse(invitation.spiffe_id)
    joined = Joined(url=url, server=f"spiffe://{mine.trust_domain}/control-plane", workload=invitation.workload)
    link = Link(url, SpiffeId.parse(joined.server), lambda: joining_context(invitation.authorities))
    try:
        _certify(link, identity, token=invitation.join)
    finally:
        link.close()
    remember(home, joined)
    return joined


def remember(home: Path, joined: Joined) -> None:
    """Last of all: a home that has this file has a certificate. Durable, since the joining token is spent by now."""
    draft = home / "link" / f".{JOINED}.draft"
    write_durably(draft, msgspec.json.encode(joined))
    draft.replace(home / "link" / JOINED)
    sync_directory(home / "link")


def joined_as(home: Path) -> Joined | None:
    """Where a home belongs, None if it never joined. Raises IntegrityError."""
    try:
        return msgspec.json.decode((home / "link" / JOINED).read_bytes(), type=Joined)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise IntegrityError(
            f"{home / 'link' / JOINED} is damaged: {error}.", next_step="Remove it and join again."
        ) from error


def _certify(link: Link, identity: Identity, *, token: str = "") -> None:
    key = spiffe.new_key()
    request = {"request": spiffe.signing_request(key)}
    got = _read(link.call("POST", "/api/v1/workloads/certify", request, token=token), Certified)
    identity.keep(Svid(certificates=got.certificate.encode(), key=key), got.authorities.encode())


def _read(answer: bytes, kind: type[T]) -> T:
    """Raises Unavailable: a control plane of another release is one that cannot be understood now."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"The control plane says what this release does not understand: {error}.",
            next_step="Run the same release of macadam-platform on both machines.",
        ) from error


def require_names(new: state.ServingState) -> None:
    """Names of projects become folders here. Raises Unavailable."""
    for project in (*new.endpoints, *new.journals, *new.access.projects):
        _read(msgspec.json.encode(project), Name)


class Mirror:
    """One linked home. Every method may be repeated after a failure at any point."""

    def __init__(self, home: Path, joined: Joined, identity: Identity, objects: Objects) -> None:
        self._home = home
        self._joined = joined
        self._identity = identity
        self._objects = objects
        self.link = Link(joined.url, SpiffeId.parse(joined.server), lambda: identity.context(server=False))
        self._left_out: tuple[str, ...] = ()
        self._revoked = ""
        self._renewable = float("-inf")

    def renew(self) -> bool:
        """Renews the certificate if half of its time is over. Files of an external agent are taken as they are."""
        if not self._joined.external:
            if utc_now() < spiffe.half_life(self._identity.certificates) or time.monotonic() < self._renewable:
                return False
            _certify(self.link, self._identity)
            self._renewable = time.monotonic() + _RENEWAL_SECONDS
        elif not self._identity.changed():
            return False
        self.link.close()
        return True

    def fetch(self) -> bool:
        """Takes over the newest state, its objects first. Returns whether it was a new one.

        A control plane that no longer knows this workload takes its endpoints away: what was revoked does not go on.
        Somebody else who stands where the control plane should takes nothing away.
        """
        self.link.connected()
        try:
            answer = self.link.call("GET", f"/api/v1/link/state?known={state.published(self._objects)}")
        except (NotAuthenticated, NotAuthorised):
            self._withdraw()
            raise
        got = _read(answer, LinkState)
        if got.revoked and got.revoked != self._revoked:  # the gateway checks whose signature it has, and its number
            self._objects.set_name(revocation.NAME, got.revoked.encode())
            self._revoked = got.revoked
        if got.left_out != self._left_out and got.state:
            self._left_out = got.left_out
            for one in got.left_out:
                _log.warning("not served here: %s", one)
        if not got.state:
            return False
        new = _read(got.state.encode(), state.ServingState)
        require_names(new)
        for project, digest in objects_of(new):
            if not self._objects.exists(digest):
                self._fetch_object(project, digest)
        self._objects.set_name(state.NAME, got.state.encode())
        return True

    def _fetch_object(self, project: str, digest: str) -> None:
        answer = self.link.call("GET", f"/api/v1/projects/{project}/link/objects/{digest}")
        data = _read(answer, LinkedObject).data
        if self._objects.put(data) != digest:
            raise IntegrityError(
                f"The control plane sent other bytes than {digest}.", next_step="Do not serve; verify its ledger."
            )

    def _withdraw(self) -> None:
        try:
            known = state.decode(self._objects.get_name(state.NAME))
        except (NotFound, msgspec.MsgspecError):
            return
        if known.endpoints:
            empty = msgspec.structs.replace(known, generation=f"withdrawn/{known.generation}", endpoints={})
            self._objects.set_name(state.NAME, state.encode(empty))
            _log.error("the control plane refuses %s: its endpoints were taken away", self._joined.workload)

    def deliver(self) -> int:
        """Delivers closed segments, oldest first, and removes each once the control plane has it. Returns how many.

        A project whose segments are refused holds up no other; what it was refused with is raised at the end.
        """
        delivered = 0
        refused: dict[str, MacadamError] = {}
        for path in sorted((self._home / "journal").glob(f"*/*{CLOSED}"), key=lambda p: p.stem):
            if path.parent.name in refused:
                continue
            try:
                self._deliver_one(path)
            except Temporary:
                raise
            except MacadamError as error:
                refused[path.parent.name] = error
            else:
                delivered += 1
        if refused:
            raise next(iter(refused.values()))
        return delivered

    def _deliver_one(self, path: Path) -> None:
        body = {"segment": path.stem, "data": path.read_bytes(), "answers": read_answers(path)}
        answer = self.link.call("POST", f"/api/v1/projects/{path.parent.name}/link/segments", body)
        told = _read(answer, Delivered)
        if told.segment != path.stem:
            raise IntegrityError(f"{path.stem} was delivered and {told.segment} acknowledged.")
        path.unlink()
        path.with_suffix(ANSWERS).unlink(missing_ok=True)

    def report(self) -> None:
        """Reports what the gateway refused; each report goes once the control plane has it."""
        for path in denials.finished(self._home / denials.FOLDER, time.time()):
            counts, others = denials.read(path)
            told = [{"count": count, **msgspec.structs.asdict(one)} for one, count in sorted(counts.items())]
            if told or others:
                body = {"report": path.stem, "denials": told, "others": others}
                _read(self.link.call("POST", "/api/v1/link/denials", body), DenialReport)
            path.unlink(missing_ok=True)


class Keeper:
    """Runs a mirror's duties until it is told to stop; what fails is said once, and tried again later each time."""

    def __init__(self, mirror: Mirror, *, poll: float = 0.2, longest: float = 30.0) -> None:
        """poll: seconds between two looks at the state; longest: between two tries while the link is down."""
        self._mirror = mirror
        self._poll, self._longest = poll, longest
        self.failure = ""

    def run(self, wait: Callable[[float], bool]) -> None:
        """wait: waits so many seconds, and says whether to stop."""
        pause = self._poll
        due = 0.0
        while not wait(pause):
            duties: list[Callable[[], object]] = [self._mirror.fetch, self._mirror.renew]
            if time.monotonic() >= due:
                duties += [self._mirror.deliver, self._mirror.report]
                due = time.monotonic() + 1.0
            if failure := self._do(duties):
                pause = min(max(pause * 2, 1.0), self._longest)
                if failure != self.failure:
                    self.failure = failure
                    _log.warning("the link is down, the gateway goes on with what it has: %s", failure)
            else:
                if self.failure:
                    _log.info("the link is up again")
                self.failure, pause = "", self._poll

    def _do(self, duties: Iterable[Callable[[], object]]) -> str:
        """Does each, whatever became of those before it. Returns what went wrong first, in words."""
        first = ""
        for duty in duties:
            try:
                duty()
            except (MacadamError, OSError) as error:  # a disk that is full here is no reason to stop answering
                first = first or str(error)
                if isinstance(error, Unavailable) and not self._mirror.link.is_connected:
                    break  # the others would wait for the same
        return first

    def finish(self) -> None:
        """Delivers what the gateway closed when it stopped; what cannot be delivered is, at the next start."""
        if failure := self._do([self._mirror.deliver, self._mirror.report]):
            _log.warning("closed segments wait for the next start: %s", failure)
        self._mirror.link.close()
