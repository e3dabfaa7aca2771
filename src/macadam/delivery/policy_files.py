"""A project's `policies/`: reading its Cedar files, and refusing what is not sound before anything is done.

Sound is what parses, fits the schema in force, and says to each row of the tables beside it what the row expects.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from macadam.access import policy_table, policy_types
from macadam.access.policies import PolicyText, ProjectText
from macadam.access.policies.compiled import compiled
from macadam.errors import InvalidInput

FOLDER = "policies"
TABLES = tuple(f"{FOLDER}/{name}" for name in policy_types.TABLES)
"""The tables of who may what: each that is there has to hold."""
_SHOWN = 5  # rows of a table that do not hold


def policies(directory: Path) -> dict[str, str]:
    """The Cedar files by their path in the project, as `macadam policy propose @policies` names them."""
    folder = directory / FOLDER
    shown = (p for p in sorted(folder.rglob("*.cedar")) if p.is_file())
    return {
        path.relative_to(directory).as_posix(): _text(path)
        for path in shown
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def tables(directory: Path) -> dict[str, str]:
    return {name: _text(directory / name) for name in TABLES if (directory / name).is_file()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as text: {error}.", next_step="Correct or remove it.") from error


def reference(project: str, files: Mapping[str, str]) -> str:
    """As the access room names a text; '' if there is none."""
    return f"policy:{ProjectText.of(project, files).digest}" if files else ""


def require_sound(project: str, files: Mapping[str, str], tables: Mapping[str, str], platform: PolicyText) -> None:
    """Raises InvalidInput, naming file and line."""
    if not files:
        _require_no_table(tables)
        return
    try:
        msgspec.convert(files, policy_types.Files)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The name of a file in {FOLDER}/ is not taken: {error}.",
            next_step="Use letters, digits, '.', '_' and '-': policies/purpose.cedar.",
        ) from error
    own = ProjectText.of(project, files)
    if not compiled(platform, own).own:
        raise InvalidInput(
            f"There is no policy in {', '.join(files)}.",
            next_step="Write one, or remove the files; to go without policies: macadam policy rollback --to 0.",
        )
    for name, text in tables.items():
        _require_held(name, text, own, platform)


def _require_no_table(tables: Mapping[str, str]) -> None:
    for name in tables:
        raise InvalidInput(
            f"{name} is there, but no {FOLDER}/*.cedar that it could be held against.",
            next_step=f"Write the policies, or ask what is in force: macadam policy test {name}.",
        )


def _require_held(name: str, text: str, own: ProjectText, platform: PolicyText) -> None:
    cases = policy_table.read(name, text)
    try:
        outcomes = policy_table.hold(cases, own.project, platform, own)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.what}", next_step=error.next_step, details=error.details) from error
    wrong = [one for one in outcomes if not one.held]
    if wrong:
        raise InvalidInput(
            f"The policies do not say what {name} expects: {'; '.join(_said(name, wrong))}.",
            next_step=f"Correct the policies or the table; see all rows: macadam policy test {name}.",
            details={"table": name, "rows": len(outcomes), "wrong": [one.line for one in wrong]},
        )


def _said(name: str, wrong: list[policy_table.Outcome]) -> Iterator[str]:
    for one in wrong[:_SHOWN]:
        when = f" with {one.when}" if one.when else ""
        yield f"{name}:{one.line}: {one.who} {one.does}{when} is {one.got}, not {one.expect} ({one.reason})"
    if len(wrong) > _SHOWN:
        yield f"and {len(wrong) - _SHOWN} more"
