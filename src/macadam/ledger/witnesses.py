"""Witnesses of the ledger: others, with keys of their own, who cosign only a log that grew from what they have seen.

After each checkpoint the newest is submitted (https://c2sp.org/tlog-witness), on a thread of its own: an append never
waits for one. A witness that finds this ledger rolled back or forked says so, and that is kept and shown until it
cosigns again. The other side is `macadam_witness`.
"""

import base64
import http.client
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from macadam.errors import IntegrityError, InvalidInput, MacadamError, NotFound, SettingInvalid, Temporary, Unavailable
from macadam.lazy import lazy
from macadam.ledger.keyring import KeyRing
from macadam.ledger.note import COSIGNATURE, Note, VerifierKey, verify
from macadam.ledger.publishing import cosigned, publish
from macadam.ledger.schema import checkpoints, cosignatures, witnesses
from macadam.ledger.sequencer import read_tile
from macadam.ledger.tree import TileHashes, consistency_proof
from macadam.nudged import Nudged
from macadam.ports import Ports
from macadam.values import utc_now

if TYPE_CHECKING:
    import ssl
else:
    ssl = lazy("ssl")

_MOST_BYTES = 64 * 1024
"""Of an answer: a cosignature takes 200."""
_TRIES = 4
"""A witness is told the size that it names; more than one other process that submits at the same time is unusual."""
_FIRST_RETRY, _LONGEST_RETRY = 2.0, 300.0  # seconds until a witness that did not answer is asked again
_RENEWAL = 600.0
"""Seconds without a new checkpoint after which the newest is cosigned anew: what was put back is found, and the time on
it says that it is still the newest.
"""

_log = logging.getLogger(__name__)


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file that MACADAM_LEDGER_WITNESSES names. url: without the final `/add-checkpoint`."""

    key: VerifierKey
    url: str


class Refused(MacadamError):
    """A witness did not cosign. breach: because this ledger is not the one that it has seen."""

    code = "refused-by-witness"

    def __init__(self, what: str, *, breach: bool = False) -> None:
        super().__init__(
            what, next_step="See macadam ledger witnesses, and ask the witness's operator what it has seen."
        )
        self.breach = breach


# --- who they are


def configured(ports: Ports) -> tuple[Witness, ...]:
    """Raises SettingInvalid, naming the line that is wrong."""
    named = ports.settings.ledger.witnesses
    if not named:
        return ()
    try:
        lines = Path(named).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingInvalid(
            f"MACADAM_LEDGER_WITNESSES names {named}, which cannot be read: {error}.",
            next_step="Write a line 'key URL' for each witness, or unset it.",
        ) from error
    return tuple(_witness(line) for line in lines if line.strip() and not line.startswith("#"))


def _witness(line: str) -> Witness:
    key, _, url = line.strip().partition(" ")
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingInvalid(
            f"The witnesses' file has the line {line[:200]!r}.",
            next_step="Write the witness's key, a space, and its http or https URL.",
        )
    (read,) = read_keys(key)
    return Witness(key=read, url=url.strip().rstrip("/"))


def read_keys(text: str) -> tuple[VerifierKey, ...]:
    """Witnesses' verifier keys, one a line; what stands behind a key on its line is skipped. Raises InvalidInput."""
    lines = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    keys = tuple(VerifierKey.parse(line) for line in lines)
    for key in keys:
        if key.kind != COSIGNATURE:
            raise InvalidInput(
                f"{key} is not a witness's key.", next_step="Give the key that the witness prints when it starts."
            )
    return keys


def cosigners(note: str, keys: Sequence[VerifierKey], ring: KeyRing) -> tuple[VerifierKey, ...]:
    """Which of these witnesses cosigned the note, each key once.

    Raises InvalidInput if one of them is the ledger itself, IntegrityError for a cosignature that is not its own.
    """
    own = {key.public for key in ring.verifiers}
    for key in keys:
        if key.public in own or key.name == ring.origin:
            raise InvalidInput(
                f"{key} is the ledger itself: it cannot be its own witness.", next_step="Give keys of others."
            )
    parsed = Note.parse(note)
    signed = {key.public: key for key in verify(parsed, (*ring.verifiers, *keys)) if key.kind == COSIGNATURE}
    return tuple(signed.values())


# --- asking them


def cosign(ports: Ports, *, anew: bool = False) -> None:
    """Submits the newest checkpoint to each witness that has not cosigned it yet, and publishes what they sign.

    anew: also to those that have: a home that was put back brings its old cosignatures along, and only the witness knows
    that it has seen more.
    What a witness refuses is kept and logged. Raises Unavailable if one does not answer, after asking the others.
    """
    asked = configured(ports)
    silent: list[str] = []
    signed = False
    for witness in asked:
        try:
            signed |= _ask(ports, witness, anew=anew)
        except Refused as error:
            _keep_refusal(ports, witness, error)
        except Temporary as error:
            silent.append(str(error.what))
    if signed:
        publish(ports)
    if silent:
        raise Unavailable(" ".join(silent), next_step="Start the witness; the checkpoint is submitted again by itself.")


def try_cosign(ports: Ports, *, anew: bool = False) -> None:
    """Like `cosign`, for callers who go on with what there is if a witness does not answer."""
    try:
        cosign(ports, anew=anew)
    except Unavailable as error:
        _log.warning("ledger: a checkpoint is not cosigned yet: %s", error)


def _ask(ports: Ports, witness: Witness, *, anew: bool) -> bool:
    """Whether there is a new cosignature. Raises Refused, Unavailable."""
    key = str(witness.key)
    with ports.sql.read() as sql:
        size, note = _newest(sql)
        done = sa.select(cosignatures.c.size).where(cosignatures.c.size == size, cosignatures.c.key == key)
        if size == 0 or (sql.execute(done).first() and not anew):
            return False
        old = sql.execute(sa.select(witnesses.c.size).where(witnesses.c.key == key)).scalar() or 0
    for _ in range(_TRIES):
        old = min(old, size)
        status, answer = _post(witness.url, _request(ports, old, size, note), ports.settings.ledger.witness_timeout)
        if status == http.client.OK:
            _keep(ports, witness.key, size, _own_line(answer, note, witness.key))
            return True
        if status != http.client.CONFLICT:
            raise _refusal(witness, status, answer)
        seen = _size_in(answer)
        if seen > size:
            with ports.sql.read() as sql:
                size, note = _newest(sql)  # another process may have submitted a newer one
            if seen > size:
                raise Refused(
                    f"{witness.key.name} has seen {seen} leaves of this ledger, which has {size}: it was rolled back.",
                    breach=True,
                )
        elif seen == old == size:
            raise Refused(f"{witness.key.name} has seen another checkpoint of {size} leaves: a fork.", breach=True)
        old = seen
    raise Unavailable(f"{witness.key.name} names another size each time.", next_step="It is asked again by itself.")


def _newest(sql: sa.Connection) -> tuple[int, str]:
    row = sql.execute(sa.select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1)).first()
    return (row.size, row.note) if row else (0, "")


def _request(ports: Ports, old: int, size: int, note: str) -> bytes:
    hashes = TileHashes(lambda tile: read_tile(ports, tile)).at(size)
    proof = consistency_proof(old, size, hashes) if 0 < old < size else []
    lines = [f"old {old}", *(base64.b64encode(step).decode() for step in proof)]
    return ("\n".join(lines) + "\n\n" + note).encode()


def _post(url: str, body: bytes, timeout: float) -> tuple[int, str]:
    """Raises Unavailable."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        connection.request("POST", f"{parts.path}/add-checkpoint", body, {"Content-Type": "text/plain"})
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"The witness at {url} does not answer: {error!r}.", next_step="Start it, or take it out of the file."
        ) from error
    finally:
        connection.close()


def _refusal(witness: Witness, status: int, answer: str) -> Refused:
    said = "".join(c for c in answer.partition("\n")[0][:200] if c.isprintable())
    if status == http.client.UNPROCESSABLE_ENTITY:
        return Refused(f"{witness.key.name} finds that this ledger does not begin with what it has seen.", breach=True)
    if status >= http.client.INTERNAL_SERVER_ERROR:
        raise Unavailable(f"{witness.key.name} answered {status}: {said}.", next_step="It is asked again by itself.")
    return Refused(f"{witness.key.name} answered {status}: {said}.")


def _size_in(answer: str) -> int:
    text = answer.removesuffix("\n")
    if not text.isdecimal() or len(text) > 18:  # noqa: PLR2004 - digits of a size
        raise Refused("A witness answered 409 without the size that it has seen.")
    return int(text)


def _own_line(answer: str, note: str, key: VerifierKey) -> str:
    """The witness's cosignature. Raises Refused if it is not there or not valid: then it is not that witness."""
    try:
        added = Note.parse(note + answer).signatures[len(Note.parse(note).signatures) :]
        (line,) = [one for one in added if (one.name, one.id) == (key.name, key.id)][:1]
        verify(Note(text=Note.parse(note).text, signatures=(line,)), [key])
    except (InvalidInput, IntegrityError, ValueError) as error:
        raise Refused(f"What answers for {key.name} does not sign with its key: it may have been swapped.") from error
    return str(line)


# --- what they said


def _keep(ports: Ports, key: VerifierKey, size: int, line: str) -> None:
    def write(sql: sa.Connection) -> None:
        sql.execute(sa.delete(cosignatures).where(cosignatures.c.size == size, cosignatures.c.key == str(key)))
        sql.execute(sa.insert(cosignatures).values(size=size, key=str(key), line=line))
        _state(sql, key, size=size, refusal="", breach=False)

    ports.sql.write(write)


def _keep_refusal(ports: Ports, witness: Witness, refused: Refused) -> None:
    _log.log(logging.CRITICAL if refused.breach else logging.WARNING, "ledger: %s", refused.what)
    key = str(witness.key)

    def write(sql: sa.Connection) -> None:
        said = sql.execute(sa.select(witnesses).where(witnesses.c.key == key)).first()
        if said and said.breach and not refused.breach:
            return  # that it refuses for another reason now takes nothing back
        size = said.size if said else 0
        _state(sql, witness.key, size=size, refusal=refused.what, breach=refused.breach)

    ports.sql.write(write)


def _state(sql: sa.Connection, key: VerifierKey, *, size: int, refusal: str, breach: bool) -> None:
    sql.execute(sa.delete(witnesses).where(witnesses.c.key == str(key)))
    sql.execute(sa.insert(witnesses).values(key=str(key), size=size, refusal=refusal, breach=breach, at=utc_now()))


def breaches(sql: sa.Connection, asked: Iterable[Witness]) -> list[str]:
    """What these witnesses hold against this ledger."""
    keys = [str(witness.key) for witness in asked]
    query = (
        sa.select(witnesses.c.refusal).where(witnesses.c.breach, witnesses.c.key.in_(keys)).order_by(witnesses.c.key)
    )
    return list(sql.execute(query).scalars())


def quorum_problems(ports: Ports, sql: sa.Connection, ring: KeyRing, wanted: int, given: str) -> tuple[int, list[str]]:
    """How many witnesses cosigned the newest checkpoint, and what is wrong if that is not enough.

    given: the text of a file of their keys; '' takes those that are configured. Raises InvalidInput if `wanted` are more
    than there are.
    """
    keys = read_keys(given) if given else tuple(witness.key for witness in configured(ports))
    if wanted > len({key.public for key in keys}):
        raise InvalidInput(
            f"{wanted} witnesses must have cosigned, and {len(keys)} are known.",
            next_step="Give their keys with --witness-key @FILE, or name them in the file of MACADAM_LEDGER_WITNESSES.",
        )
    size, note = _newest(sql)
    if not keys:
        return 0, []
    if size == 0:
        return 0, ["there is no checkpoint that witnesses could have cosigned"] if wanted else []
    try:
        found = cosigners(cosigned(sql, size, note), keys, ring)
    except IntegrityError as error:
        return 0, [f"checkpoint {size}: {error.what}"]
    if len(found) >= wanted:
        return len(found), []
    named = ", ".join(key.name for key in found) or "nobody"
    return len(found), [f"{named} of {len(keys)} witnesses cosigned checkpoint {size}, {wanted} must"]


class Submitter:
    """Asks the witnesses soon after each `nudge`, on a thread of its own, and again while one does not answer.

    alarm: what witnesses hold against this ledger, '' if nothing.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._thread = Nudged("ledger-witnesses", self._run)
        self.alarm = ""

    def nudge(self) -> None:
        """Says that there may be a new checkpoint. Returns at once; does nothing where no witness is configured."""
        if self._ports.settings.ledger.witnesses:
            self._thread.nudge()

    def close(self) -> None:
        """Submits what is there once more, each witness given its time, then stops."""
        self._thread.close()

    def _run(self) -> None:
        pause = 0.0
        while True:
            asked = self._thread.wanted.wait(pause or _RENEWAL)
            self._thread.wanted.clear()
            last = self._thread.closing.is_set()
            try:
                cosign(self._ports, anew=not asked and not pause)
                pause = 0.0
            except MacadamError as error:
                pause = min(pause * 2 or _FIRST_RETRY, _LONGEST_RETRY)
                _log.warning("ledger: a checkpoint is not cosigned yet, the next try is in %g s: %s", pause, error)
            except Exception:  # noqa: BLE001 - a thread that dies would leave checkpoints without cosignatures
                pause = _LONGEST_RETRY
                _log.exception("ledger: a checkpoint is not cosigned, the next try is in %g s", pause)
            if last:
                return
            self._look()

    def _look(self) -> None:
        try:
            with self._ports.sql.read() as sql:
                self.alarm = " ".join(breaches(sql, configured(self._ports)))
        except (MacadamError, NotFound) as error:
            _log.warning("ledger: what witnesses said cannot be read: %s", error)
