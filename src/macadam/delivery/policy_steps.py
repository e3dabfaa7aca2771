"""From the policies in force to those of the project's files: proposed once, looked at until others approved, activated.

Pure, as `plan`, whose part it is. An approval that was given before the present policies came into force is not used for
putting the old text back: it was given for other circumstances.
"""

from collections.abc import Iterator

from macadam.access.policy_types import PolicyVersion
from macadam.delivery.policy_files import FOLDER
from macadam.delivery.types import Actual, Desired, From, Step

_PROPOSAL = "policies:proposal"
_BEEN_IN_FORCE = ("active", "superseded")


def of(desired: Desired, actual: Actual) -> tuple[Step, ...]:
    """The steps of the policies, none if they are in force, are not asked for, or were taken out of force."""
    if not desired.policies or desired.policies == _in_force(actual) or _taken_back(desired, actual):
        return ()
    found = _open(desired, actual)
    if found is None:
        return (
            _propose(desired, actual),
            *_look_and_activate(desired, actual, From(step=_PROPOSAL, field="version", text=False)),
        )
    return tuple(_look_and_activate(desired, actual, found.version, found))


def left(desired: Desired, actual: Actual) -> Iterator[str]:
    """What is in force or proposed and the files do not hold, in sentences: it stays."""
    now = _active(actual)
    if now is not None and not desired.policies:
        yield (
            f"There is no {FOLDER}/*.cedar: version {now.version} of the policies stays in force. "
            "To take it out of force: `macadam policy rollback --to 0`."
        )
    if taken_back := _taken_back(desired, actual):
        yield (
            f"{FOLDER}/ is version {taken_back.version} of the policies, which was taken out of force: it stays so. "
            f"To put it back: `macadam policy activate {taken_back.version}`."
        )
    for one in _after_those_in_force(actual):
        if one.ref != desired.policies:
            yield f"Version {one.version} of the policies, proposed by {one.proposed_by}, is not in {FOLDER}/: it stays {one.state}."


def _propose(desired: Desired, actual: Actual) -> Step:
    now = _active(actual)
    return Step(
        key=_PROPOSAL,
        request="ProposePolicies",
        arguments={"project": desired.project.name, "files": desired.project.policies},
        title=f"Propose the policies of {FOLDER}/",
        why=f"they differ from version {now.version}, which is in force." if now else "none are in force.",
    )


def _look_and_activate(
    desired: Desired, actual: Actual, version: int | From, found: PolicyVersion | None = None
) -> Iterator[Step]:
    """What is activated replaces what was in force when it was planned: an apply that goes on days later undoes nothing."""
    spoken = f"version {version} of the policies" if found else "the proposed policies"
    arguments: dict[str, object] = {"project": desired.project.name, "version": version}
    now = _active(actual)
    yield Step(
        key="policies:approval",
        request="ShowPolicies",
        arguments=arguments,
        title=f"Ask who approved {spoken}",
        why=_why(found),
    )
    yield Step(
        key="policies:in-force",
        request="ActivatePolicies",
        arguments={**arguments, "instead_of": now.version if now else 0},
        title=f"Put {spoken} in force",
        why="if they are approved.",
        under_policies=True,
    )


def _why(found: PolicyVersion | None) -> str:
    if found is None:
        return "somebody else than who proposes them has to."
    given = f"{found.counted} of {found.needed} approvals"
    if found.state == "approved":
        return f"it has {given}."
    return f"it waits for approval ({given}): somebody else than {found.proposed_by} runs `macadam policy approve {found.version}`."


def _open(desired: Desired, actual: Actual) -> PolicyVersion | None:
    """The proposal that has this text: one that is approved before one that is not."""
    same = [one for one in _after_those_in_force(actual) if one.ref == desired.policies]
    return next((one for one in same if one.state == "approved"), same[0] if same else None)


def _after_those_in_force(actual: Actual) -> list[PolicyVersion]:
    """Proposals that are newer than all that was ever in force, newest first."""
    last = max((one.version for one in actual.policies if one.state in _BEEN_IN_FORCE), default=0)
    return [one for one in actual.policies if one.version > last]


def _taken_back(desired: Desired, actual: Actual) -> PolicyVersion | None:
    """The newest text of all, if the files still hold it and somebody put an older one in its place: on purpose, so an
    apply does not undo it.
    """
    newest = actual.policies[0] if actual.policies else None
    taken_back = newest is not None and newest.state == "superseded" and newest.ref == desired.policies
    return newest if taken_back and desired.policies != _in_force(actual) else None


def _active(actual: Actual) -> PolicyVersion | None:
    return next((one for one in actual.policies if one.state == "active"), None)


def _in_force(actual: Actual) -> str:
    now = _active(actual)
    return now.ref if now else ""
