"""Makes a fresh home usable: its policies, its local administrator, and the leaves that say so.

Runs at each start. On a home that has them it costs one query; two processes that open a fresh home at once
end with one administrator and one secret.
"""

import secrets
from datetime import datetime

import sqlalchemy as sa

from macadam.access import state as access
from macadam.access.authentication import TOKEN_PREFIX, token_digest
from macadam.access.policies import PolicyText, ProjectText, built_in, effective_digest
from macadam.access.policies.compiled import compiled
from macadam.access.schema import grants, policy_activations, policy_sets, principals, state, tokens
from macadam.errors import Conflict, NotFound
from macadam.ledger import service as ledger
from macadam.ledger.leaf import without_call
from macadam.ports import Ports, Secrets
from macadam.values import utc_now, uuid7

LOCAL = "principal:local"
LOCAL_SECRET = "local-token"  # noqa: S105 - the name of a secret, not a secret
SYSTEM = "system:bootstrap"


def new_secret() -> str:
    """A credential of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def bootstrap(ports: Ports) -> None:
    """Idempotent. Raises what the ports raise; nothing is half done."""
    text = built_in()
    digest = text.digest
    with ports.sql.read() as sql:
        if _policy_set(sql) == digest:
            return
    compiled(text)  # refuses a set that does not parse or fit its schema before it is in force
    ports.objects.put(text.document)
    token = _local_token(ports.secrets)
    ports.sql.write(lambda sql: _install(sql, text, token, utc_now()))


def _policy_set(sql: sa.Connection) -> str:
    return sql.execute(sa.select(state.c.policy_set)).scalar_one_or_none() or ""


def _local_token(store: Secrets) -> str:
    """The local administrator's credential. Whoever writes the secret first wins; the others take theirs."""
    try:
        return store.get(LOCAL_SECRET).decode()
    except NotFound:
        token = new_secret()
    try:
        store.put(LOCAL_SECRET, token.encode())
    except Conflict:
        return store.get(LOCAL_SECRET).decode()
    return token


def _install(sql: sa.Connection, text: PolicyText, token: str, now: datetime) -> None:
    before = _policy_set(sql)
    if before == text.digest:
        return  # another process was first
    if not sql.execute(sa.select(policy_sets.c.digest).where(policy_sets.c.digest == text.digest)).first():
        sql.execute(
            sa.insert(policy_sets).values(digest=text.digest, policies=text.policies, schema=text.schema, since=now)
        )
    sql.execute(sa.delete(state))
    sql.execute(sa.insert(state).values(id=1, generation=uuid7(), policy_set=text.digest))
    policy = f"policy:{text.digest}"
    facts: dict[str, object] = {"name": "built-in roles", "policies": sorted(compiled(text).names)}
    uses = [f"policy:{before}"] if before else []
    _record(sql, text.digest, now, subject=policy, uses=uses, body=facts)
    if not before:
        _administrator(sql, token, text.digest, now)
    _renew_projects(sql, text, now)


def _renew_projects(sql: sa.Connection, text: PolicyText, now: datetime) -> None:
    """A release's new set decides together with what each project has active: another set, so another leaf."""
    for project, row in access.active(sql).items():
        own = ProjectText.of(project, row.files)
        digest = effective_digest(text.digest, project, own.digest)
        if digest == row.policy_set:
            continue
        sql.execute(
            sa.insert(policy_activations).values(
                project=project,
                number=row.number + 1,
                version=row.version,
                policy_set=digest,
                at=now,
                by=SYSTEM,
                reason="the platform's policies are another release's",
            )
        )
        facts: dict[str, object] = {"version": row.version, "platform": text.digest, "own": own.digest}
        uses = [f"policy:{text.digest}", f"policy:{own.digest}"]
        _record(sql, text.digest, now, subject=f"policy:{digest}", uses=uses, body=facts, project=project)


def _administrator(sql: sa.Connection, token: str, policy_set: str, now: datetime) -> None:
    token_id = uuid7()
    sql.execute(sa.insert(principals).values(id=LOCAL, kind="person", created=now, created_by=SYSTEM))
    sql.execute(sa.insert(grants).values(project="*", principal=LOCAL, role="admin", granted=now, granted_by=SYSTEM))
    # No expiry: whoever can read the secret's file can also write the database beside it.
    sql.execute(
        sa.insert(tokens).values(
            id=token_id, digest=token_digest(token), principal=LOCAL, scopes=[], issued=now, issued_by=SYSTEM
        )
    )
    facts: dict[str, object] = {"kind": "person", "role": "admin", "in": "*", "token": token_id}
    _record(sql, policy_set, now, subject=LOCAL, uses=[f"policy:{policy_set}"], body=facts)


def _record(
    sql: sa.Connection,
    policy_set: str,
    now: datetime,
    *,
    subject: str,
    uses: list[str],
    body: dict[str, object],
    project: str = "",
) -> None:
    leaf = without_call(
        "access.bootstrap",
        at=now,
        actor=SYSTEM,
        project=project,
        subject=subject,
        uses=uses,
        rule="bootstrap",
        policy_set=policy_set,
        body=body,
    )
    ledger.queue(sql, leaf)
