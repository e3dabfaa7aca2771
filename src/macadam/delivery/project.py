"""A project's files: `macadam.yaml` read strictly into frozen values, with the files it names.

A key that is unknown is refused with the nearest one that is known; dates stay text until a field asks for one.
What the files ask for and what already is are compared in `plan`.
"""

import difflib
import itertools
import re
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from macadam.access.types import Owner, Risk
from macadam.delivery import policy_files
from macadam.errors import InvalidInput, NotFound
from macadam.journal.types import Durability, OnFailure
from macadam.lazy import lazy
from macadam.models.types import EntryText, Parameter, ParameterName
from macadam.values import Name, parse_instant

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")

FILE = "macadam.yaml"
_MAX_BYTES = 1 << 20
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>[^`]*)`(?: - at `(?P<path>[^`]*)`)?\Z")
_DATE = re.compile(r"^\d{4}-\d{2}(-\d{2})?\Z")
_DATE_IN_NAME = re.compile(r"(\d{4})[-_]?(\d{2})(?:[-_]?(\d{2}))?")

RelativePath = Annotated[
    str,
    msgspec.Meta(pattern=r"^(?!/)(?!.*(^|/)\.\.(/|$)).+\Z", description="a path inside the project's directory"),
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of macadam.yaml."""


class ProjectSection(Section, frozen=True, kw_only=True):
    """Whose it is. owner: '' is whoever applies it first. durability, on_journal_failure: when an answer may leave, and
    what happens to answers whose record cannot be written.
    """

    name: Name
    owner: Owner = ""
    description: str = ""
    risk: Risk = "limited"
    durability: Durability = "group"
    on_journal_failure: OnFailure = "stop"


class SourceSection(Section, frozen=True, kw_only=True):
    """Files that become a table. files: a glob; table: '' is the source's name.

    through: the last file to take, as a date that its name holds (2013-06 or 2013-06-30) or as a file name.
    """

    files: RelativePath
    contract: RelativePath
    table: Name | Literal[""] = ""
    format: Literal["", "csv", "parquet", "jsonl"] = ""
    through: str = ""


class Splits(Section, frozen=True, kw_only=True):
    """Which events each step sees, as [start, end): dates (midnight UTC) or instants with a zone."""

    train: tuple[str, str]
    tune: tuple[str, str] | None = None
    holdout: tuple[str, str] | None = None

    def windows(self) -> dict[str, tuple[datetime, datetime]]:
        """Split → start and end, UTC. Raises InvalidInput for what is no date, is empty or overlaps."""
        given = {"train": self.train, "tune": self.tune, "holdout": self.holdout}
        windows = {name: _window(name, pair) for name, pair in given.items() if pair is not None}
        ordered = sorted(windows.items(), key=lambda item: item[1])
        for (one, (_, end)), (two, (start, _)) in itertools.pairwise(ordered):
            if start < end:
                raise InvalidInput(
                    f"The splits {one} and {two} overlap: {two} starts before {one} ends.",
                    next_step="Let each split start where the one before it ends, so that nothing is tested on itself.",
                )
        return windows


class ModelSection(Section, frozen=True, kw_only=True):
    """A model: how it is trained, on what, and what it must show. service: of features.py.

    alias: the one that a version gets which passes its gate; approver: whom to ask (told to people, not enforced here).
    """

    train: EntryText = "train.py:train"
    service: str
    splits: Splits
    params: dict[ParameterName, Parameter] = {}
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    gates: RelativePath = "gates.yaml"
    alias: Name = "champion"
    approver: str = ""
    timeout: Annotated[float, msgspec.Meta(ge=0)] = 0


class EndpointSection(Section, frozen=True, kw_only=True):
    """Where a model answers requests."""

    model: Name
    alias: Name = "champion"


class Document(Section, frozen=True, kw_only=True):
    """macadam.yaml as a whole."""

    project: ProjectSection
    sources: dict[Name, SourceSection] = {}
    features: RelativePath | Literal[""] = ""
    models: dict[Name, ModelSection] = {}
    endpoints: dict[Name, EndpointSection] = {}


_SECTIONS: dict[str, type[Section]] = {
    "$": Document,
    "$.project": ProjectSection,
    "$.sources[...]": SourceSection,
    "$.models[...]": ModelSection,
    "$.models[...].splits": Splits,
    "$.endpoints[...]": EndpointSection,
}


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project's directory, read. contracts, gates: text by source and by model; files: names by source, in order.

    Each is what `apply` hands over, so that what was planned is what is done. policies, policy_tables: text by file name,
    of the policies and of the tables of who may what that they are held against.
    """

    directory: Path
    document: Document
    contracts: dict[str, str]
    gates: dict[str, str]
    files: dict[str, tuple[str, ...]]
    policies: dict[str, str] = {}
    policy_tables: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.document.project.name

    def table(self, source: str) -> str:
        """The table that a source fills."""
        return self.document.sources[source].table or source


def read(directory: Path) -> Project:
    """Reads a project. Raises NotFound or InvalidInput, naming file, place and what would be right."""
    directory = directory.resolve()
    document = parse(_text(directory, FILE, "Run `macadam init NAME` to make a project, or go to one."), origin=FILE)
    return Project(
        directory=directory,
        document=document,
        contracts={
            name: _text(directory, source.contract, f"It is named by sources.{name}.contract in {FILE}.")
            for name, source in document.sources.items()
        },
        gates={
            name: _text(directory, model.gates, f"It is named by models.{name}.gates in {FILE}.")
            for name, model in document.models.items()
        },
        files={name: _files(directory, source) for name, source in document.sources.items()},
        policies=policy_files.policies(directory),
        policy_tables=policy_files.tables(directory),
    )


def parse(text: str, *, origin: str = FILE) -> Document:
    """Reads the text of a macadam.yaml and checks that its parts fit each other. Raises InvalidInput."""
    try:
        document = msgspec.convert(load_yaml(text, origin), Document)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), origin) from error
    _require_parts(document, origin)
    return document


def load_yaml(text: str, origin: str) -> Any:
    """Plain values of a YAML text: dates stay text, only true and false are booleans, no key twice, no tags.

    Raises InvalidInput.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidInput(f"{origin} is larger than {_MAX_BYTES} bytes.", next_step="Move data out of it.")
    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInput(
            f"{origin} is not valid YAML{where}: {getattr(error, 'problem', None) or error}.",
            next_step=f"Correct {origin}.",
        ) from error


@cache
def _loader() -> type[Any]:
    class Loader(yaml.SafeLoader):
        """YAML as people mean it: `no` and `on` are text, and so is 2013-01-01."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
            first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":bool"))]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            names = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if names.count(key.value) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            return dict(super().construct_mapping(node, deep=deep))

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)\Z"), list("tf"))
    return Loader


def _misfit(problem: str, origin: str) -> InvalidInput:
    unknown = _UNKNOWN.match(problem)
    if unknown is None:
        where = problem.replace("`$.", "`").replace("[...]", ".*")
        return InvalidInput(f"{origin} does not fit: {where}.", next_step=f"Correct {origin} at that place.")
    field, path = unknown["field"], unknown["path"] or "$"
    known = [f.encode_name for f in msgspec.structs.fields(_SECTIONS[path])] if path in _SECTIONS else []
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
    place = path.removeprefix("$").removeprefix(".").replace("[...]", ".*") or "the top level"
    return InvalidInput(
        f"{origin} has an unknown key {field!r} at {place}.",
        next_step=f"Did you mean {near[0]!r}?" if near else f"Known there: {', '.join(known)}.",
        details={"key": field, "at": place},
    )


def _require_parts(document: Document, origin: str) -> None:
    """What one part names, another has."""
    for name, endpoint in document.endpoints.items():
        if endpoint.model not in document.models:
            near = difflib.get_close_matches(endpoint.model, document.models, n=1)
            raise InvalidInput(
                f"{origin}: endpoint {name!r} is for model {endpoint.model!r}, which is not among its models.",
                next_step=f"Did you mean {near[0]!r}?" if near else "Add the model, or name another.",
            )
    if document.models and not document.features:
        raise InvalidInput(
            f"{origin} has models but no features.", next_step="Add `features: features.py` with their service."
        )
    tables: dict[str, str] = {}
    for name, source in document.sources.items():
        table = source.table or name
        if table in tables:
            raise InvalidInput(
                f"{origin}: sources {tables[table]!r} and {name!r} both fill table {table!r}.",
                next_step="Give each its own table.",
            )
        tables[table] = name
    for model in document.models.values():
        model.splits.windows()


def _window(split: str, pair: tuple[str, str]) -> tuple[datetime, datetime]:
    start, end = (_instant(text, f"splits.{split}") for text in pair)
    if start >= end:
        raise InvalidInput(
            f"The split {split} is empty: {pair[0]} is not before {pair[1]}.",
            next_step="Write it as [start, end), the end not included.",
        )
    return start, end


def _instant(text: str, where: str) -> datetime:
    """A date is its midnight in UTC."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        try:
            return parse_instant(text)
        except InvalidInput as error:
            raise InvalidInput(
                f"{where} has {text!r}, which is no date.", next_step="Write 2013-01-31 or 2013-01-31T06:00:00Z."
            ) from error
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _text(directory: Path, name: str, next_step: str) -> str:
    path = directory / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.", next_step=next_step) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", next_step=next_step) from error


def _files(directory: Path, source: SourceSection) -> tuple[str, ...]:
    """The source's files up to its bound, in the order of their names. None yet is for `plan` to say."""
    found = sorted(p.relative_to(directory).as_posix() for p in directory.glob(source.files) if p.is_file())
    return tuple(name for name in found if not source.through or _within(name, source.through))


def _within(name: str, through: str) -> bool:
    """Whether a file is at or before the bound.

    A date bound looks at the last date in the file's name, as far as the bound goes: 2013-06 includes 2013-06-30. A
    file without a date is not bounded by one.
    """
    if not _DATE.match(through):
        return Path(name).name <= through
    dates = _DATE_IN_NAME.findall(Path(name).name)
    return not dates or "-".join(part for part in dates[-1] if part)[: len(through)] <= through
