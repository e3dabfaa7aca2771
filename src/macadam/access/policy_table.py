"""A table of who may do what, held against policies: tests for policies, without a server and without principals.

Each row names roles instead of a person, so that a table stays true when people come and go. Pure: reading files and
printing are for the command line.
"""

import csv
import io
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from macadam.access.authentication import KnownToken
from macadam.access.circumstances import KnownAsset, KnownProject
from macadam.access.engine import AccessSnapshot, Engine, KnownPrincipal
from macadam.access.policies import PolicyText, ProjectText, effective_digest
from macadam.access.types import ROLES
from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.operations import Actor, Declared
from macadam.values import parse_instant

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")

_SOMEBODY = "principal:somebody"
_NOON = "2026-06-01T12:00:00.000000Z"
"""A Monday: rows that say no time are no surprise to policies that close on weekends."""
_CONDITIONS = ("purpose", "caller_location", "risk", "location", "classification", "at")


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row. who: roles joined by +, 'nobody' for none, 'service ROLE' for a service. does: a permission; on: a
    reference. when: circumstances, as NAME=VALUE joined by commas. line: in its file, from 1.
    """

    who: str
    does: str
    on: str = ""
    when: str = ""
    expect: Literal["allow", "deny"]
    line: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A row and what the policies say. held: as expected."""

    line: int
    who: str
    does: str
    on: str
    when: str
    expect: str
    got: str
    held: bool
    reason: str


def read(name: str, text: str) -> tuple[Case, ...]:
    """name: of the file; what it ends in says how it is written: .yaml, .csv or .md. Raises InvalidInput with the line."""
    rows = _rows(name, text)
    cases = []
    for line, row in rows:
        try:
            cases.append(msgspec.convert({**{k: str(v) for k, v in row.items() if v is not None}, "line": line}, Case))
        except msgspec.ValidationError as error:
            raise InvalidInput(
                f"{name}:{line}: the row does not fit: {error}.",
                next_step="Each row has who, does, on, when and expect (allow or deny).",
            ) from error
    if not cases:
        raise InvalidInput(f"{name} has no rows.", next_step="Write who, does, on, when, expect in its first line.")
    return tuple(cases)


def _rows(name: str, text: str) -> list[tuple[int, Mapping[str, object]]]:
    kind = name.rpartition(".")[2].lower()
    if kind in ("yaml", "yml"):
        return _yaml_rows(name, text)
    if kind == "md":
        text, first = _markdown_as_csv(text)
    elif kind == "csv":
        first = 2
    else:
        raise InvalidInput(
            f"{name} is neither YAML, CSV nor Markdown.", next_step="Name it .yaml, .csv or .md after what is in it."
        )
    return [(first + n, row) for n, row in enumerate(csv.DictReader(io.StringIO(text), skipinitialspace=True))]


def _yaml_rows(name: str, text: str) -> list[tuple[int, Mapping[str, object]]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        # Text stays text: YAML 1.1 would read the column `on` as a boolean. This loader makes nothing but text.
        found = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{name} is not YAML: {error}.", next_step="Correct it.") from error
    if node is None or not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InvalidInput(f"{name} is no list of rows.", next_step="Write - {who: …, does: …, expect: allow}.")
    return [(item.start_mark.line + 1, row) for item, row in zip(node.value, found, strict=True)]


def _markdown_as_csv(text: str) -> tuple[str, int]:
    """The first table of a page, and the line of its first row."""
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line.lstrip().startswith("|")), len(lines))
    out = io.StringIO()
    writer = csv.writer(out)
    for n, line in enumerate(lines[start:]):
        if not line.lstrip().startswith("|"):
            break
        if n != 1:  # the rule below the head
            writer.writerow([cell.strip().strip("`") for cell in line.strip().strip("|").split("|")])
    return out.getvalue(), start + 3


def hold(cases: tuple[Case, ...], project: str, platform: PolicyText, own: ProjectText | None) -> tuple[Outcome, ...]:
    """What the policies say to each row. Raises InvalidInput for a row that names no role, permission or circumstance."""
    return tuple(_hold(case, project, platform, own) for case in cases)


def _hold(case: Case, project: str, platform: PolicyText, own: ProjectText | None) -> Outcome:
    kind, roles = _who(case)
    when = _when(case)
    place = "" if case.on.startswith("platform:") else project
    asset = (case.on or f"project:{project}").partition("@")[0]
    here = KnownProject(
        risk=when.get("risk", "limited"),
        location=when.get("location", ""),
        policies=own,
        policy_set=effective_digest(platform.digest, project, own.digest) if own else "",
        assets={asset: KnownAsset(classification=when["classification"])} if "classification" in when else {},
    )
    tokens: dict[str, KnownToken] = {}
    engine = Engine(
        AccessSnapshot(
            generation="",
            policy_set=platform.digest,
            policies=platform,
            tokens=tokens,
            principals={_SOMEBODY: KnownPrincipal(kind=kind, roles={project if place else "*": roles})},
            projects={project: here},
        )
    )
    if case.does not in engine.permissions:
        raise _refused(case, f"there is no permission {case.does!r}")
    decision = engine.decide(
        Actor(id=_SOMEBODY, kind=kind),
        case.does,
        case.on or f"project:{project}",
        place,
        declared=Declared(purpose=when.get("purpose", ""), location=when.get("caller_location", "")),
        now=_at(case, when.get("at", _NOON)),
    )
    got = "allow" if decision.allowed else "deny"
    return Outcome(
        line=case.line,
        who=case.who,
        does=case.does,
        on=case.on,
        when=case.when,
        expect=case.expect,
        got=got,
        held=got == case.expect,
        reason=decision.reason,
    )


def _who(case: Case) -> tuple[str, tuple[str, ...]]:
    words = case.who.split()
    kind = "service" if words[:1] == ["service"] else "person"
    said = "".join(words[1:] if kind == "service" else words)
    roles = () if said in ("", "nobody") else tuple(sorted(role.strip() for role in said.split("+")))
    if unknown := set(roles) - set(ROLES):
        raise _refused(case, f"there is no role {', '.join(sorted(unknown))}; the roles are {', '.join(ROLES)}")
    return kind, roles


def _when(case: Case) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in case.when.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name.strip() not in _CONDITIONS:
            raise _refused(case, f"{part!r} is no circumstance; there are {', '.join(_CONDITIONS)}, as NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _at(case: Case, text: str) -> datetime:
    try:
        return parse_instant(text)
    except InvalidInput as error:
        raise _refused(case, f"at={text} is no instant such as 2026-11-21T09:30:00Z") from error


def _refused(case: Case, what: str) -> InvalidInput:
    return InvalidInput(f"Line {case.line}: {what}.", next_step="Correct the table.", details={"line": case.line})
