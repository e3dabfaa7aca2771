"""What a gateway on another machine asks of the control plane: its part of the state, the models, and taking its journal.

It gets the projects in which it holds the role `gateway`, and nothing of the others. Carrying this over mutual TLS is for
`macadam.faces.link`; the other end is `link_mirror`.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import sqlalchemy as sa

from macadam.access import revocation, revoking, workloads
from macadam.access import service as access
from macadam.access.engine import AccessSnapshot
from macadam.access.limit_service import keep_denials
from macadam.access.types import DenialReport, RecordDenials
from macadam.errors import Conflict, InvalidInput, NotAuthorised, NotFound
from macadam.features.online import compile_service
from macadam.journal.layout import ANSWERS, CLOSED, COUNTER, sync_directory
from macadam.journal.schema import segments
from macadam.journal.sealing import folder_of
from macadam.journal.segment import SegmentReader
from macadam.operations import Context, Request, Transaction, operation
from macadam.ports import Objects
from macadam.serving import publishing, registry, state
from macadam.serving.state import ServingState
from macadam.serving.types import Deployment
from macadam.values import Digest, Name, digest_of, uuid7

MOST_SEGMENT = 48 * 1024 * 1024
"""Bytes of a segment that can be delivered: it travels in one request."""
_SERVE = "link:serve"
_ARRIVING = ".arriving"
"""A folder beside those of the projects, whose names start with a letter."""
_ABANDONED_SECONDS = 3600.0
_PROJECT = "/api/v1/projects/{project}"
SegmentId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """state: the caller's part as published JSON, '' if it has that generation. left_out: what cannot be served far away.

    revoked: the signed list of revoked credentials as it is now, '' if there is none yet.
    """

    generation: str
    state: str
    left_out: tuple[str, ...]
    revoked: str = ""


class ReadLinkState(Request[LinkState], frozen=True, kw_only=True):
    """Read the caller's part of what gateways know. known: the generation that it has."""

    known: str = ""


class LinkedObject(msgspec.Struct, frozen=True, kw_only=True):
    """data: in base64."""

    digest: str
    data: bytes


class ReadLinkedObject(Request[LinkedObject], frozen=True, kw_only=True):
    """Read one object that a deployment in the project names."""

    project: Name
    digest: Digest


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """known: it had been delivered before, and nothing was done."""

    segment: str
    records: int
    known: bool


class DeliverSegment(Request[Delivered], frozen=True, kw_only=True):
    """Deliver a closed journal segment that was written on another machine. Delivering twice changes nothing.

    data: the file, in base64; answers: the gateway's own count.
    """

    project: Name
    segment: SegmentId
    data: bytes
    answers: Annotated[int, msgspec.Meta(ge=0)]


# --- state and objects


@operation(ReadLinkState, permission="link:state", http="GET /api/v1/link/state", cli="workloads state",
           resource="platform:home")  # fmt: skip
def read_link_state(tx: Transaction, request: ReadLinkState) -> LinkState:
    mine = _served(tx)
    # Which projects they are is part of it: a policy that looks at the clock changes them, and nothing that is stored.
    generation = f"{publishing.generation(tx.sql)}/{digest_of(msgspec.json.encode(sorted(mine)))[7:19]}"
    revoked = _revoked(tx.ports.objects)
    if request.known == generation:
        return LinkState(generation=generation, state="", left_out=(), revoked=revoked)
    key = revoking.signer(tx.ports.secrets).verifier
    number = revoking.published_number(tx.ports.objects, key)
    whole = publishing.build(tx.sql, revocation_key=str(key), revocation_number=number)
    kept: dict[str, dict[str, Deployment]] = {}
    left_out: list[str] = []
    for project in mine:
        for name, deployment in whole.endpoints.get(project, {}).items():
            if why := _unservable(deployment):
                left_out.append(f"{project}/{name}: {why}")
            else:
                kept.setdefault(project, {})[name] = deployment
    journals = {project: policy for project, policy in whole.journals.items() if project in mine}
    narrowed = _narrowed(whole.access, mine)
    part = msgspec.structs.replace(whole, generation=generation, access=narrowed, endpoints=kept, journals=journals)
    return LinkState(
        generation=generation, state=state.encode(part).decode(), left_out=tuple(left_out), revoked=revoked
    )


def _revoked(objects: Objects) -> str:
    try:
        return objects.get_name(revocation.NAME).decode()
    except NotFound:
        return ""


def _served(tx: Transaction) -> frozenset[str]:
    """The projects that the caller may serve."""
    return frozenset(
        name
        for name in access.snapshot(tx.sql).projects
        if access.decide(tx.sql, tx.actor, _SERVE, f"project:{name}", name, tx.now).allowed
    )


def _unservable(deployment: Deployment) -> str:
    if deployment.personal is not None:
        return "it takes personal values, whose keys do not leave the control plane's machine"
    if deployment.service and compile_service(deployment.service).service.table_views:
        return "its features are looked up in the online store, which only gateways beside it reach"
    return ""


def _narrowed(whole: AccessSnapshot, projects: frozenset[str]) -> AccessSnapshot:
    """Who may call in these projects. Others are strangers there, which the gateway tells them."""
    reached = {*projects, "*"}
    principals = {
        name: msgspec.structs.replace(known, roles={p: r for p, r in known.roles.items() if p in reached})
        for name, known in whole.principals.items()
        if reached & known.roles.keys()
    }
    kept = {name: known for name, known in whole.projects.items() if name in projects}
    tokens = {}
    for digest, token in whole.tokens.items():
        here = tuple(p for p in token.projects if p in reached)
        if token.principal in principals and (here or not token.projects):
            tokens[digest] = msgspec.structs.replace(token, projects=here)
    rates = {name: limit for name, limit in whole.rates.items() if name in principals}
    return msgspec.structs.replace(whole, principals=principals, tokens=tokens, projects=kept, rates=rates)


@operation(ReadLinkedObject, permission="link:objects", http=f"GET {_PROJECT}/link/objects/{{digest}}",
           cli="workloads object")  # fmt: skip
def read_linked_object(tx: Transaction, request: ReadLinkedObject) -> LinkedObject:
    """Raises NotFound also for objects that exist and that no deployment of the project names."""
    if request.digest not in set(_named(registry.all_of(tx.sql, request.project))):
        raise NotFound(f"No deployment in {request.project} names {request.digest}.", next_step="Read the state again.")
    return LinkedObject(digest=request.digest, data=tx.ports.objects.get(request.digest))


def _named(deployments: tuple[Deployment, ...]) -> Iterator[str]:
    """What a gateway needs to serve them: what the platform named, and no digest that somebody wrote into a definition."""
    for one in deployments:
        yield from filter(None, (one.artifact, one.signature, one.model_signature))


def objects_of(published: ServingState) -> Iterator[tuple[str, str]]:
    """(project, digest) of all objects that the endpoints of a state need."""
    for project, endpoints in published.endpoints.items():
        for digest in sorted(set(_named(tuple(endpoints.values())))):
            yield project, digest


class ReportDenials(RecordDenials, frozen=True, kw_only=True):
    """Report what the caller refused, as a gateway, within a minute. The same report twice is recorded once."""


@operation(ReportDenials, permission="link:state", http="POST /api/v1/link/denials", cli="workloads denials",
           resource="platform:home")  # fmt: skip
def report_denials(tx: Transaction, request: ReportDenials) -> DenialReport:
    """Raises NotAuthorised for callers that are no gateway of a project that they report about."""
    workload = workloads.name_of(tx.sql, tx.actor.id)
    strange = {one.project for one in request.denials} - _served(tx) - {""}
    if not workload or strange:
        raise NotAuthorised(
            f"{tx.actor.id} is no gateway of {', '.join(sorted(strange)) or 'any project'}.",
            next_step="Enroll it with these projects (`macadam workloads enroll`).",
        )
    told = msgspec.structs.replace(request, report=f"{workload}-{request.report}"[:200])
    return keep_denials(tx, told, f"workload:{workload}")


# --- the journal


class _Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that was read to its last byte and lies, durable, under a name that nobody looks at."""

    path: Path
    gateway: str
    records: int
    digest: str


def _receive(context: Context, request: DeliverSegment) -> _Draft:
    """Raises IntegrityError if a byte is not as the gateway wrote it, InvalidInput if it is another's segment."""
    if len(request.data) > MOST_SEGMENT:
        raise InvalidInput(
            f"The segment has {len(request.data)} bytes, at most {MOST_SEGMENT} are taken.",
            next_step="Set MACADAM_JOURNAL_SEGMENT_BYTES lower on the gateway's machine.",
        )
    # A folder of its own, on the same disk: the reader holds a segment to the name of its file.
    arriving = folder_of(context.ports.settings.home, _ARRIVING)
    _forget_abandoned(arriving)
    place = arriving / uuid7()
    place.mkdir(mode=0o700, parents=True)
    draft = place / f"{request.segment}.arriving"
    try:
        with draft.open("xb") as file:
            file.write(request.data)
            file.flush()
            os.fsync(file.fileno())
        return _read_through(draft, request)
    except BaseException:
        _discard(draft)
        raise


def _forget_abandoned(arriving: Path) -> None:
    """What a kill left of a delivery: it is delivered again, under another name."""
    for place in arriving.glob("*/"):
        with contextlib.suppress(FileNotFoundError):  # another delivery has just ended
            if time.time() - place.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def _read_through(draft: Path, request: DeliverSegment) -> _Draft:
    with SegmentReader(draft, strict=True) as reader:
        records = sum(1 for _ in reader)
        header = reader.header
    if header.project != request.project:
        raise InvalidInput(
            f"The segment says that it is of project {header.project}.",
            next_step="Deliver each segment to its own project.",
        )
    return _Draft(path=draft, gateway=header.gateway, records=records, digest=digest_of(request.data))


@operation(DeliverSegment, permission="link:deliver", http=f"POST {_PROJECT}/link/segments",
           cli="workloads deliver", prepare=_receive)  # fmt: skip
def deliver_segment(tx: Transaction, request: DeliverSegment, draft: _Draft) -> Delivered:
    """The file gets its name after the commit; a caller that heard no answer delivers again, and so completes it.

    Raises NotAuthorised for another gateway's segment, Conflict if other bytes have that id.
    """
    workload = workloads.name_of(tx.sql, tx.actor.id)
    if not workload or draft.gateway != workload:
        _discard(draft.path)
        raise NotAuthorised(
            f"{tx.actor.id} delivers a segment of the gateway {draft.gateway!r}.",
            next_step="Each gateway delivers its own journal, as the workload of that name.",
        )
    target = folder_of(tx.ports.settings.home, request.project) / f"{request.segment}{CLOSED}"
    known = _is_known(tx, request, draft, target)
    tx.record(
        f"segment:{request.segment}",
        uses=[tx.actor.id],
        digest=draft.digest,
        records=draft.records,
        answers=request.answers,
        known=known,
    )
    tx.after_commit(partial(_settle, draft.path, target, request.answers, known=known))
    return Delivered(segment=request.segment, records=draft.records, known=known)


def _is_known(tx: Transaction, request: DeliverSegment, draft: _Draft, target: Path) -> bool:
    """Raises Conflict, and discards the draft, if other bytes were delivered under the id."""
    t = segments.c
    sealed = tx.sql.execute(sa.select(t.project, t.archive).where(t.id == request.segment)).first()
    if sealed is not None:
        same = (sealed.project, sealed.archive) == (request.project, draft.digest)
    elif target.exists():
        same = target.read_bytes() == request.data
    else:
        return False
    if not same:
        _discard(draft.path)
        raise _other_bytes(request.segment)
    return True


def _other_bytes(segment: str) -> Conflict:
    return Conflict(
        f"Another segment {segment} was delivered with other bytes.",
        next_step="Keep both files and compare them: an id is never used twice.",
    )


def _settle(draft: Path, target: Path, answers: int, *, known: bool) -> None:
    """The counter first: a segment is never there without it. Two deliveries at once: the file stays what it was first."""
    if known:
        _discard(draft)
        return
    if not target.parent.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(target.parent.parent)
    counter = draft.with_suffix(ANSWERS)
    with counter.open("wb") as file:
        file.write(COUNTER.pack(answers))
        file.flush()
        os.fsync(file.fileno())
    try:
        if not target.exists():
            counter.rename(target.with_suffix(ANSWERS))
        os.link(draft, target)
        sync_directory(target.parent)
    except FileExistsError as error:
        if target.read_bytes() != draft.read_bytes():
            raise _other_bytes(target.stem) from error
    finally:
        counter.unlink(missing_ok=True)
        _discard(draft)


def _discard(draft: Path) -> None:
    draft.unlink(missing_ok=True)
    draft.parent.rmdir()
