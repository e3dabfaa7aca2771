"""Runs one call through the door: authenticate, authorise, validate, prepare, one transaction, evidence.

The order is the guarantee, so its steps are numbered in `Dispatcher.run`. Nothing here knows any capability.
"""

import contextlib
import dataclasses
import hmac
import logging
import os
import re
import string
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa

from macadam.access import classification, workloads
from macadam.access import service as access
from macadam.access.rates import Limit
from macadam.access.spiffe import Peer
from macadam.app import idempotency
from macadam.compute.waterfall.metering import Meter as WorkMeter
from macadam.errors import Conflict, InvalidInput, MacadamError, NotAuthenticated, NotAuthorised
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.operations import (
    UNDECLARED,
    Actor,
    Authorise,
    Call,
    Context,
    Decision,
    Declared,
    Evidence,
    Granted,
    Operation,
    Progress,
    Transaction,
    plain,
)
from macadam.ports import Ports
from macadam.values import digest_of, instant, uuid7

StillAllowed = Callable[[sa.Connection], None]
Meter = Callable[[Actor, Mapping[str, Limit]], None]
"""Called with who calls and the limits of principals that have their own; raises RateLimited."""
Credential = str | Peer
"""A token, or the certificate that a connection presented."""

ANONYMOUS = Actor(id="anonymous", kind="unknown")
# A flood of calls without a token, or of readings that somebody may not have, must not fill the ledger: one leaf a second
# for each actor says how many there were. Refused changes are recorded one by one.
_INTERVAL = 1.0
_MOST_ACTORS = 10_000
_DIGEST_KEY = "request-digests"
"""The secret behind digests of private requests."""
_MOST_TEXT = 400
"""Characters of a refused caller's own words in a leaf."""
_MOST_DETAILS = 16 * 1024
"""Bytes of a refusal's details in a leaf, of the 64 KiB that one may have."""

_AT_FIELD = re.compile(r" - at `\$\.([a-z_]+)`\Z")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""NUL as JSON escapes it; an even number of backslashes before it are other characters."""

_log = logging.getLogger(__name__)


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Reports to nobody."""


class Dispatcher:
    """clock: gives the instant of each call, UTC."""

    def __init__(
        self,
        ports: Ports,
        *,
        clock: Callable[[], datetime],
        sequence: Callable[[], None],
        work: WorkMeter | None = None,
    ) -> None:
        self._ports = ports
        self._work = work or WorkMeter()
        self._clock = clock
        self._sequence = sequence
        self._private_key = b""
        self._floods = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}

    def run(
        self,
        operation: Operation,
        arguments: Mapping[str, object],
        *,
        token: Credential,
        lax: bool = False,
        idempotency_key: str = "",
        declared: Declared = UNDECLARED,
        progress: Progress = no_progress,
    ) -> Any:
        """Returns the operation's response.

        arguments: the request as plain JSON values. lax: text may stand for numbers and booleans (paths, queries).
        Raises what the tree in `macadam.errors` says.
        """
        call = self.admit(operation, arguments, token, declared)  # 1, 2
        request = _validated(operation, arguments, lax=lax)  # 3
        resource = _filled(operation.resource, arguments)
        try:
            still_allowed = partial(self._still_allowed, call, resource, token)
            with self._work.measuring(_cut(call.project), operation.name, _cut(resource), call.now):
                return self._carry_out(call, request, idempotency_key, progress, still_allowed)  # 4, 5, 6
        except (NotAuthorised, NotAuthenticated) as refused:
            # A gate, or an asset that the request only implies: state is as before, and the refusal is evidence.
            self._record_denial(_refused(call, refused), resource, refused.details)
            raise

    def _carry_out(
        self, call: Call, request: Any, idempotency_key: str, progress: Progress, still_allowed: StillAllowed
    ) -> Any:
        operation = call.operation
        authorise = self._authoriser(call)
        prepared: tuple[object, ...] = ()
        begun: list[Evidence] = []
        if operation.prepare is not None:  # 4: heavy work, immutable files, nothing visible; or what has begun
            if idempotency_key and (known := self._known_answer(idempotency_key, call)) is not None:
                return msgspec.json.decode(known, type=operation.request.response_type())

            def begin(evidence: Evidence) -> None:
                self._begin(call, evidence, still_allowed)
                begun.append(evidence)

            context = Context(call=call, ports=self._ports, progress=progress, authorise=authorise, begin=begin)
            prepared = (operation.prepare(context, request),)
        if not operation.changes:
            with self._ports.sql.read() as sql:
                return operation.handler(self._transaction(sql, call, authorise), request, *prepared)
        allowed = _was_allowed if begun else still_allowed
        return self._change(call, request, prepared, allowed, idempotency_key)  # 5, 6

    def admit(
        self,
        operation: Operation,
        arguments: Mapping[str, object],
        token: Credential,
        declared: Declared = UNDECLARED,
        *,
        meter: Meter | None = None,
    ) -> Call:
        """Steps 1 and 2: who calls, and may they? Faces call it by itself before they read a body.

        meter: asked in between, so that neither decisions nor the leaves of denials are had faster than allowed.
        Raises NotAuthenticated, NotAuthorised, and what the meter raises; a refusal leaves a leaf.
        """
        now = self._clock()
        project = str(arguments.get("project", ""))
        key = self._digest_key() if operation.private else b""
        request_digest = _request_digest(operation, arguments, key)
        with self._ports.sql.read() as sql:
            try:
                actor = _holder(sql, token, now)  # 1. authenticate
            except NotAuthenticated as error:
                refused = Decision(id=uuid7(), allowed=False, policies=(), policy_set="", reason=error.what)
                call = Call(
                    operation=operation,
                    actor=ANONYMOUS,
                    project=project,
                    decision=refused,
                    request_digest=request_digest,
                    now=now,
                    declared=declared,
                )
                denied: MacadamError = error
            else:
                if meter is not None:
                    meter(actor, access.rates(sql))
                resource = _filled(operation.resource, arguments)
                decision = access.decide(
                    sql, actor, operation.permission, resource, project, now, declared
                )  # 2. authorise
                call = Call(
                    operation=operation,
                    actor=actor,
                    project=project,
                    decision=decision,
                    request_digest=request_digest,
                    now=now,
                    declared=declared,
                )
                if decision.allowed:
                    return call
                denied = _refusal(operation.permission, resource, actor, decision)
        self._record_denial(call, _filled(operation.resource, arguments))
        raise denied

    def _change(
        self, call: Call, request: object, prepared: tuple[object, ...], still_allowed: StillAllowed, key: str
    ) -> Any:
        """5. one transaction: the answer to a repeated key, or the handler, its leaves and its answer. 6. after it."""
        acts: list[Callable[[], None]] = []
        authorise = self._authoriser(call)

        def work(sql: sa.Connection) -> Any:
            still_allowed(sql)  # preparing may have taken an hour, and a role or token may be gone since
            if key and (known := idempotency.find(sql, key, call)) is not None:
                return msgspec.json.decode(known, type=call.operation.request.response_type())
            tx = self._transaction(sql, call, authorise)
            response = call.operation.handler(tx, request, *prepared)
            if not tx.leaves:
                # No state change without evidence: the least that can be said is who did what to which asset.
                tx.record(_filled(call.operation.resource, msgspec.to_builtins(request)))
            if key:
                idempotency.keep(sql, key, call, response)
            acts.extend(tx.committed)
            return response

        response = self._ports.sql.write(work)
        self._sequence()
        _follow_up(acts)
        return response

    def _begin(self, call: Call, evidence: Evidence, still_allowed: StillAllowed) -> None:
        """One transaction of its own: whoever may no longer do it does not begin, whoever has begun may end it."""

        def work(sql: sa.Connection) -> None:
            still_allowed(sql)
            _queue_leaf(sql, call, evidence)

        self._ports.sql.write(work)
        self._sequence()

    def _still_allowed(self, call: Call, resource: str, token: Credential, sql: sa.Connection) -> None:
        """Asks again, on the state that the transaction sees. Raises NotAuthenticated, NotAuthorised."""
        now = self._clock()
        actor = _holder(sql, token, now)
        decision = access.decide(sql, actor, call.operation.permission, resource, call.project, now, call.declared)
        if not decision.allowed:
            raise _refusal(call.operation.permission, resource, actor, decision)

    def _transaction(self, sql: sa.Connection, call: Call, authorise: Authorise) -> Transaction:
        return Transaction(sql=sql, call=call, ports=self._ports, sink=_queue_leaf, authorise=authorise)

    def _known_answer(self, key: str, call: Call) -> bytes | None:
        with self._ports.sql.read() as sql:
            return idempotency.find(sql, key, call)

    def _authoriser(self, call: Call) -> Authorise:
        def authorise(permission: str, resource: str) -> Granted:
            with self._reading() as sql:
                decision = access.decide(sql, call.actor, permission, resource, call.project, call.now, call.declared)
            if not decision.allowed:
                raise _refusal(permission, resource, call.actor, decision)
            return Granted(decision, permission, resource)

        return authorise

    def _digest_key(self) -> bytes:
        if not self._private_key:
            secrets = self._ports.secrets
            if _DIGEST_KEY not in secrets.names(_DIGEST_KEY):
                with contextlib.suppress(Conflict):  # another process is quicker
                    secrets.put(_DIGEST_KEY, os.urandom(32))
            self._private_key = secrets.get(_DIGEST_KEY)
        return self._private_key

    def _reading(self) -> AbstractContextManager[sa.Connection]:
        return self._ports.sql.read()

    def _record_denial(self, call: Call, subject: str, details: Mapping[str, object] | None = None) -> None:
        unsaid = self._unsaid(call) if call.actor is ANONYMOUS or not call.operation.changes else 0
        if unsaid is None:
            return
        body: dict[str, object] = {"reason": _cut(call.decision.reason), "others_since_last": unsaid}
        if details:
            body["details"] = _bounded(details)
        evidence = Evidence(subject=_cut(subject), uses=(), body=body)
        asked = dataclasses.replace(call, project=_cut(call.project))
        self._ports.sql.write(lambda sql: _queue_leaf(sql, asked, evidence))
        self._sequence()

    def _unsaid(self, call: Call) -> int | None:
        """How many refusals of the actor went unsaid since the last one that was; None for one that is counted only."""
        now = time.monotonic()
        with self._floods:
            at, unsaid = self._said.get(call.actor.id, (float("-inf"), 0))
            if now - at < _INTERVAL:
                self._said[call.actor.id] = (at, unsaid + 1)
                return None
            if len(self._said) >= _MOST_ACTORS:
                self._said.clear()
            self._said[call.actor.id] = (now, 0)
        return unsaid


def _was_allowed(_sql: sa.Connection) -> None:
    """For what has begun: it was allowed in the transaction that says so, and has destroyed since what it must certify."""


def _holder(sql: sa.Connection, credential: Credential, now: datetime) -> Actor:
    """Raises NotAuthenticated."""
    if isinstance(credential, Peer):
        return workloads.authenticate(sql, credential, now)
    return access.authenticate(sql, credential, now)


def _follow_up(acts: list[Callable[[], None]]) -> None:
    """Runs every act, also after one that failed: the change is durable. Then raises the first error."""
    first: Exception | None = None
    for act in acts:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised below
            if first is None:
                first = error
            else:
                _log.exception("after the commit, a second act failed")
    if first is not None:
        raise first


def _cut(text: str) -> str:
    """What a caller who was refused had asked for may be of any length; its leaf may not."""
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}… ({len(text)} characters)"


def _bounded(details: Mapping[str, object]) -> object:
    """Details of a refusal as a leaf can hold them: what is not finite is left out, what is too long is a digest."""
    text = msgspec.json.encode(details, enc_hook=str, order="sorted")
    if len(text) > _MOST_DETAILS:
        return {"digest": digest_of(text), "bytes": len(text)}
    return plain(msgspec.json.decode(text))


def _request_digest(operation: Operation, arguments: Mapping[str, object], key: bytes) -> str:
    """The same for the same request, in whatever order its fields came. Raises InvalidInput for what is no text.

    key: of HMAC-SHA256, where the request holds what a plain digest would let others guess; else b''.
    """
    try:
        text = msgspec.json.encode(dict(arguments), order="sorted")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"The request for {operation.name} holds text that is no Unicode: {error.reason}.",
            next_step="Send UTF-8 text.",
            details={"operation": operation.name},
        ) from error
    if b"\\u0000" in text and _NUL.search(text):
        raise InvalidInput(
            f"The request for {operation.name} holds the character NUL, which Postgres keeps in no text.",
            next_step="Leave it out, or send the bytes encoded.",
            details={"operation": operation.name},
        )
    return "sha256:" + hmac.digest(key, text, "sha256").hex() if key else digest_of(text)


def _queue_leaf(sql: sa.Connection, call: Call, evidence: Evidence) -> str:
    leaf = Leaf(
        id=uuid7(),
        at=instant(call.now),
        kind=call.operation.name,
        outcome="done" if call.decision.allowed else "denied",
        actor=call.actor.id,
        project=call.project,
        subject=evidence.subject,
        uses=list(evidence.uses),
        request=call.request_digest,
        decision={
            "id": call.decision.id,
            "effect": "allow" if call.decision.allowed else "deny",
            "policies": list(call.decision.policies),
            "policy_set": call.decision.policy_set,
        },
        body=evidence.body if call.declared == UNDECLARED else {**evidence.body, "declared": plain(call.declared)},
    )
    ledger.queue(sql, leaf)
    classification.follow(sql, leaf)
    return leaf.id


def _validated(operation: Operation, arguments: Mapping[str, object], *, lax: bool) -> Any:
    """3. validate. Raises InvalidInput, naming the field, what was got and what is expected."""
    try:
        return msgspec.convert(dict(arguments), operation.request, strict=not lax)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The request for {operation.name} does not fit: {_in_words(operation, str(error))}.",
            next_step=f"See `macadam {operation.cli} --help` for its fields.",
            details={"operation": operation.name},
        ) from error


def _in_words(operation: Operation, said: str) -> str:
    """What the field's own description or choices say, in place of a pattern or of nothing."""
    where = _AT_FIELD.search(said)
    found = [one for one in msgspec.structs.fields(operation.request) if where and one.encode_name == where[1]]
    if not found:
        return said
    plain = msgspec.inspect.type_info(found[0].type)
    if said.startswith("Expected `str` matching regex") and isinstance(plain, msgspec.inspect.Metadata):
        about = (plain.extra_json_schema or {}).get("description", "")
        return f"Expected {about} - at `$.{where[1]}`" if where and about else said
    if said.startswith("Invalid enum value") and isinstance(plain, msgspec.inspect.LiteralType):
        return f"{said}: it is one of {', '.join(str(one) or 'nothing' for one in plain.values)}"
    return said


def _filled(template: str, arguments: object) -> str:
    values = arguments if isinstance(arguments, Mapping) else {}
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return template.format(**{name: values.get(name) or "-" for name in fields})


def _refused(call: Call, error: NotAuthorised | NotAuthenticated) -> Call:
    """The call as one that was admitted and then refused by what it met."""
    named = error.details.get("policies", ())
    policies = tuple(str(p) for p in named) if isinstance(named, list | tuple) else ()
    decision = Decision(
        id=uuid7(), allowed=False, policies=policies, policy_set=call.decision.policy_set, reason=error.what
    )
    return dataclasses.replace(call, decision=decision)


def _refusal(permission: str, resource: str, actor: Actor, decision: Decision) -> NotAuthorised:
    return NotAuthorised(
        f"{actor.id} may not {permission} on {resource}: {decision.reason}.",
        next_step="Ask an administrator for a role that allows it (`macadam roles grant`).",
        details={
            "permission": permission,
            "resource": resource,
            "policies": list(decision.policies),
            "policy_set": decision.policy_set,
            "decision": decision.id,
        },
    )
