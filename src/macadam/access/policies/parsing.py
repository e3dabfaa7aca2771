"""Reads Cedar text into policies of which is known, without evaluating them, what they are about and what they read.

That is what lets a decision look at few policies and gather few circumstances. Cedar's own JSON form of a policy
(https://docs.cedarpolicy.com/policies/json-format.html) is analysed, never its text; the text only gives line numbers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.access.policies import ProjectText
from macadam.errors import InvalidInput
from macadam.lazy import lazy

if TYPE_CHECKING:
    import cedarpy
else:
    cedarpy = lazy("cedarpy")

GOVERNING = "governing"
"""The group of actions that decide who decides. A project's policies have no say there."""
MOST_TEXT = 256 * 1024
"""Characters of a project's policies in all: a thousand policies of the usual length."""
MOST_POLICIES = 2000
EVERYTHING = "*"
"""Read by a policy of which cannot be said what it reads."""

_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|;|[^\s"/;]+|/')
_ID = re.compile(r"^[a-z][a-z0-9._-]{0,62}\Z")
_QUOTED = re.compile(r"`([^`]+)`")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. name: its @id, behind its project's name and a slash if it is a project's.

    document: Cedar's JSON form. actions: the permissions that its scope names; None: all there are. roles: the role
    that its scope asks for, principal and asset: the one it names, '' if it names none. reads: the circumstances that
    its conditions look at ('purpose', 'time.hour', …), EVERYTHING included if that cannot be told.
    """

    name: str
    place: str
    effect: str
    document: dict[str, Any]
    actions: frozenset[str] | None
    role: str
    principal: str
    asset: str
    reads: frozenset[str]

    def is_about(self, permission: str) -> bool:
        return self.actions is None or permission in self.actions


class Vocabulary:
    """What a schema lets policies speak of. Raises InvalidInput if it does not parse."""

    def __init__(self, text: str) -> None:
        try:
            self.schema = cedarpy.Schema.from_str(text)
        except ValueError as error:
            raise InvalidInput(
                f"The schema of the policies does not parse: {error}.", next_step="Correct the Cedar schema."
            ) from error
        self.groups = _groups(text)
        self.permissions = frozenset(name for name in self.groups if ":" in name)

    def within(self, action: str) -> frozenset[str]:
        """The permissions that an action is, or that a group of actions holds."""
        return frozenset(p for p in self.permissions if action in self._above(p))

    @cached_property
    def governing(self) -> frozenset[str]:
        """The permissions that decide who decides. Asked for at each decision."""
        return self.within(GOVERNING)

    def _above(self, action: str) -> set[str]:
        found, waiting = {action}, [action]
        while waiting:
            for group in self.groups.get(waiting.pop(), ()):
                if group not in found:
                    found.add(group)
                    waiting.append(group)
        return found


def _groups(schema: str) -> dict[str, tuple[str, ...]]:
    """Each action of a schema → the groups it stands in."""
    bare = "\n".join(line.partition("//")[0] for line in schema.splitlines())
    found: dict[str, tuple[str, ...]] = {}
    for statement in bare.split(";"):
        words = re.match(r"\s*action\s+(.*)", statement, re.DOTALL)
        if words is None:
            continue
        head, _, _ = words[1].partition("appliesTo")
        names, _, groups = re.sub(r'("[^"]*")\s+in\b', r"\1 @in ", head).partition("@in")
        for name in re.findall(r'"([^"]+)"', names):
            found[name] = tuple(re.findall(r'"([^"]+)"', groups))
    return found


def platform_policies(text: str, words: Vocabulary) -> tuple[Policy, ...]:
    """The policies of the platform's own set. Raises InvalidInput, naming the line."""
    found = _parse("", text, words, prefix="")
    _refuse_twins(found)
    _validate({"": text}, found, words)
    return found


def project_policies(text: ProjectText, words: Vocabulary) -> tuple[Policy, ...]:
    """The policies that a project adds. Raises InvalidInput, naming file and line.

    Refused beside what does not parse, fit the schema or name itself: a policy whose scope names an action that decides
    who decides. (One that names none is never asked there: see `compiled`.)
    """
    size = sum(len(source) for _, source in text.files)
    if size > MOST_TEXT:
        raise _refused("", f"the policies have {size} characters, at most {MOST_TEXT} are taken")
    found: list[Policy] = []
    for file, source in text.files:
        found += _parse(file, source, words, prefix=f"{text.project}/")
    if len(found) > MOST_POLICIES:
        raise _refused("", f"there are {len(found)} policies, at most {MOST_POLICIES} are taken")
    _refuse_twins(found)
    _validate(dict(text.files), found, words)
    for policy in found:
        if named := _named(policy.document["action"]) & {GOVERNING, *words.governing}:
            raise _refused(
                policy.place,
                f"{policy.name} is about {', '.join(sorted(named))}: who may change policies and roles is decided by the "
                "platform's set alone",
            )
    return tuple(found)


def _parse(file: str, source: str, words: Vocabulary, *, prefix: str) -> tuple[Policy, ...]:
    found = []
    for line, statement in statements(source):
        try:
            parsed = json.loads(cedarpy.policies_to_json_str(statement))
        except ValueError as error:
            raise _refused(_place(file, line, statement, str(error)), f"it does not parse: {error}") from error
        if parsed["templates"]:
            raise _refused(
                _at(file, line), "templates (`?principal`, `?resource`) are not taken: nothing would link them"
            )
        (document,) = parsed["staticPolicies"].values()
        found.append(_policy(document, _at(file, line), words, prefix))
    return tuple(found)


def statements(source: str) -> Iterator[tuple[int, str]]:
    """Each policy's first line (from 1) and text: up to the semicolon that is in no string and no comment."""
    start, last = -1, 0
    for token in _TOKEN.finditer(source):
        if token[0].startswith("//"):
            continue
        if start < 0:
            start = token.start()
        last = token.end()
        if token[0] == ";":
            yield source.count("\n", 0, start) + 1, source[start:last]
            start = -1
    if start >= 0:
        yield source.count("\n", 0, start) + 1, source[start:last]


def _policy(document: dict[str, Any], place: str, words: Vocabulary, prefix: str) -> Policy:
    name = str(document.get("annotations", {}).get("id") or "")
    if not _ID.fullmatch(name):
        raise _refused(
            place, f'a policy needs an @id of its own, as in @id("no-exports"); got {name!r}', step="Name each policy."
        )
    principal, action, resource = document["principal"], document["action"], document["resource"]
    scope = principal.get("entity") or {}
    is_role = principal["op"] == "in" and scope.get("type") == "Role"
    one = principal["op"] in ("==", "in") and scope.get("type") == "Principal"
    return Policy(
        name=prefix + name,
        place=place,
        effect=document["effect"],
        document=document,
        actions=_scope_actions(action, words),
        role=scope["id"] if is_role else "",
        principal=scope["id"] if one else "",
        asset=resource["entity"]["id"] if resource["op"] in ("==", "in") and "entity" in resource else "",
        reads=frozenset(_reads(document["conditions"])),
    )


def _scope_actions(scope: Mapping[str, Any], words: Vocabulary) -> frozenset[str] | None:
    if scope["op"] == "All":
        return None
    return frozenset().union(*(words.within(action) for action in _named(scope)))


def _named(scope: Mapping[str, Any]) -> frozenset[str]:
    """The actions and groups that a scope spells out."""
    entities = scope.get("entities") or ([scope["entity"]] if "entity" in scope else [])
    return frozenset(entity["id"] for entity in entities)


def _reads(node: object) -> Iterator[str]:
    """The attributes of the context and the asset that conditions look at, as dotted paths; EVERYTHING if one of
    both is used as a whole.
    """
    path = _path(node)
    if path is not None:
        yield path
    elif isinstance(node, Mapping):
        for inner in node.values():
            yield from _reads(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _reads(inner)


def _path(node: object) -> str | None:
    """'purpose' for `context.purpose` and `context has purpose`, 'resource.location' for `resource.location`."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return None
    kind, inside = next(iter(node.items()))
    if kind == "Var":
        return {"context": EVERYTHING, "resource": "resource"}.get(str(inside))
    if kind in (".", "has") and isinstance(inside, Mapping):
        left = _path(inside["left"])
        attribute = inside["attr"]
        steps = attribute if isinstance(attribute, list) else [attribute]
        if left is None:
            return None
        return ".".join([*([] if left == EVERYTHING else [left]), *steps])
    return None


def _refuse_twins(found: "list[Policy] | tuple[Policy, ...]") -> None:
    seen: dict[str, Policy] = {}
    for policy in found:
        other = seen.setdefault(policy.name, policy)
        if other is not policy:
            raise _refused(
                policy.place,
                f'the @id "{policy.name}" is taken by the policy in {other.place}',
                step="Give it another.",
            )


def _validate(sources: Mapping[str, str], found: "list[Policy] | tuple[Policy, ...]", words: Vocabulary) -> None:
    """Holds each policy against the schema, which knows what can be absent: reading that unguarded is refused here."""
    lines = [(file, *each) for file, source in sources.items() for each in statements(source)]
    answer = cedarpy.validate_policies("\n".join(statement for _, _, statement in lines), words.schema)
    if answer.validation_passed:
        return
    first = answer.errors[0]
    number = first.policy_id.removeprefix("policy")
    if not number.isdigit():
        raise _refused("", first.error)
    file, line, statement = lines[int(number)]
    error = re.sub(r"^for policy `policy\d+`, ", "", first.error)
    others = len({e.policy_id for e in answer.errors}) - 1
    more = f" ({others} more policies do not fit either)" if others else ""
    raise _refused(
        _place(file, line, statement, error), f"{found[int(number)].name} does not fit the schema: {error}{more}"
    )


def _place(file: str, line: int, statement: str, error: str) -> str:
    """The line of the word that an error quotes, else of the policy it is in."""
    for quoted in _QUOTED.findall(error):
        word = quoted.rpartition('::"')[2].rstrip('"')
        at = statement.find(word)
        if word and at >= 0:
            return _at(file, line + statement.count("\n", 0, at))
    return _at(file, line)


def _at(file: str, line: int) -> str:
    return f"{file}:{line}" if file else f"line {line}"


def _refused(place: str, what: str, *, step: str = "Correct the Cedar text and try again.") -> InvalidInput:
    said = f"The policies are refused: {place + ': ' if place else ''}{what}."
    return InvalidInput(said, next_step=step, details={"place": place} if place else {})
