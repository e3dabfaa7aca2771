"""The command line: `macadam GROUP VERB --field value`, derived from the table of operations.

Help knows only the names of the groups; a command imports the one room that it belongs to. Verbs that are no
single operation are named in VERBS and written by hand in modules of their own.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from macadam import operations
from macadam.errors import InvalidInput, MacadamError
from macadam.faces import fields, printing, problem
from macadam.faces.fields import Field
from macadam.faces.session import Session, Verb, add_options
from macadam.lazy import lazy
from macadam.operations import Operation
from macadam.values import Somewhere

if TYPE_CHECKING:
    import difflib
    import traceback
else:
    difflib = lazy("difflib")
    traceback = lazy("traceback")

# Where each verb written by hand lives. Name → (module:attribute, what it does).
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("macadam.faces.demo:VERB", "From raw flights to a prediction that is proved, on this machine"),
    "init": ("macadam.faces.project_verbs:INIT", "Start a project in a new folder"),
    "plan": ("macadam.faces.project_verbs:PLAN", "Show what `apply` would change"),
    "apply": ("macadam.faces.project_verbs:APPLY", "Make the platform what the project's files say"),
    "up": ("macadam.faces.up:VERB", "Start the control plane and the gateway here"),
    "gateway": ("macadam.faces.linked_gateway:VERB", "A gateway on a machine of its own, linked to a control plane"),
    "login": ("macadam.faces.sign_in_verbs:LOGIN", "Sign in through the sign-in provider and print a token"),
    "prove": ("macadam.faces.evidence_verbs:PROVE", "Write the file that proves one prediction"),
    "witness": ("macadam.faces.witness:VERB", "Cosign the ledgers of others, so that none can be rewritten"),
    "inspect": ("macadam.faces.evidence_verbs:INSPECT", "The 42 points of a project, each with its status"),
    "docs": ("macadam.faces.reference:VERB", "Write the reference pages from the code"),
    "version": ("macadam.faces.version:VERB", "Print the version"),
}
# Flags that make an operation's command another one, which needs no server and no database.
FLAGGED: dict[str, tuple[str, str]] = {
    "tokens revoke --offline": (
        "macadam.faces.sign_in_verbs:REVOKE_OFFLINE",
        "Revoke a credential on every gateway without the database; the next start records it",
    ),
}
# The same for verbs that stand among a group's operations.
GROUP_VERBS: dict[str, tuple[str, str]] = {
    "ledger export": (
        "macadam.faces.ledger_verbs:EXPORT",
        "Write a copy of the ledger that can be checked without Macadam",
    ),
    "gpu top": ("macadam.faces.gpu_top:VERB", "Watch devices live: what they do, for whom, for how much money"),
    "gpu import": ("macadam.faces.gpu_verbs:IMPORT", "Take in samples of a file, an exporter or a Prometheus, once"),
    "gpu watch": ("macadam.faces.gpu_verbs:WATCH", "Collect samples here and deliver them, until Ctrl-C"),
    "policy test": ("macadam.faces.policy_verbs:TEST", "Hold a table of who may do what against policies"),
    "jobs start": ("macadam.faces.job_verbs:START", "Submit a command as it is typed, and follow it"),
    "jobs run": ("macadam.faces.job_verbs:RUN", "Work the queue here, as `macadam up` does by itself"),
    "jobs follow": ("macadam.faces.job_verbs:FOLLOW", "Print a job's log as it grows, until it has ended"),
    "jobs render": (
        "macadam.faces.cluster_verbs:JOB",
        "Write a job for Kubernetes, Kueue, Ray or SkyPilot, checked before it is written",
    ),
    "jobs elastic": (
        "macadam.faces.cluster_verbs:ELASTIC",
        "Write an endpoint that follows its load on Kubernetes, down to no replica",
    ),
    "jobs terraform": (
        "macadam.faces.cluster_verbs:TERRAFORM",
        "Write a Terraform module: pools of GPU nodes, a bucket and an identity",
    ),
    "quotas render": ("macadam.faces.cluster_verbs:QUOTAS", "Write all quotas as Kueue's objects"),
    "gpu cluster": (
        "macadam.faces.cluster_verbs:CLUSTER",
        "Tell whose the pods of the Kubernetes cluster are, until Ctrl-C",
    ),
    "gpu ray": ("macadam.faces.cluster_verbs:RAY", "Show what Ray believes is used, by node and job"),
    "models signature": ("macadam.faces.model_verbs:SIGNATURE", "Write a version's files and their signature"),
    "models provenance": ("macadam.faces.model_verbs:PROVENANCE", "Show how a version came to be, as it was signed"),
    "cost waterfall": (
        "macadam.faces.cost_verbs:WATERFALL",
        "Where a month's money went, from the bill to what was effective",
    ),
    "cost own": ("macadam.faces.own_hardware_verb:VERB", "What an hour of one's own GPU costs, by wear and power"),
    "cost report": ("macadam.faces.cost_verbs:REPORT", "A month's costs as one page with pictures"),
    "models verify": ("macadam.faces.model_verbs:VERIFY", "Check a model in a folder against its signature, offline"),
    "simulate packing": (
        "macadam.faces.study_verbs:PACKING",
        "Measure on a cluster's nodes and pods how many GPUs each way of placing leaves unallocated",
    ),
    "rightsize llm": (
        "macadam.faces.rightsize_verb:LLM",
        "The cheapest GPUs that keep a promise on a trace of LLM requests",
    ),
    "rightsize endpoint": (
        "macadam.faces.endpoint_size_verb:ENDPOINT",
        "The fewest replicas of an endpoint that answer in time",
    ),
    "rightsize elastic": (
        "macadam.faces.elastic_verb:ELASTIC",
        "How many replicas each part of the day needs, and what that saves",
    ),
    "decide train": (
        "macadam.faces.decide_verb:TRAIN",
        "Train from scratch, fine-tune, LoRA, prompt or buy: what each costs and is worth",
    ),
    "simulate queue": (
        "macadam.faces.queue_verbs:QUEUE",
        "Measure on a trace of jobs what they would have waited under each policy",
    ),
    "cost replay": (
        "macadam.faces.queue_verbs:REPLAY",
        "Replay a project's jobs under a policy: the same work for how many GPU-hours less",
    ),
    "simulate spot": (
        "macadam.faces.study_verbs:SPOT",
        "Measure on traces of spot machines what a job with a deadline saves, and that it is never late",
    ),
}
_INTERRUPTED = 130  # what shells expect after SIGINT
_ALL = "Give --project NAME, or --project '*' for everything, which takes a role in all projects."
_LEAST_ABOUT = 40  # characters for what a command does, however narrow the terminal is
_BROKEN_PIPE = 141  # and after SIGPIPE


class Parser(argparse.ArgumentParser):
    """Argparse, with errors as the tree's own."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(
            f"{message[:1].upper()}{message[1:]}.".replace("..", "."), next_step=f"See `{self.prog} --help`."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. Errors become a line and a next step, never a stack trace."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in (
        words[: words.index("--")] if "--" in words else words
    )  # behind -- stands a job's own command
    try:
        return _run(words)
    except MacadamError as error:
        printing.error(error, json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Point stdout nowhere, so that Python's last flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the face's last resort: a fault of ours is said to be one
        if os.environ.get("MACADAM_DEBUG"):
            traceback.print_exc()
        unexpected = problem.Unexpected(
            f"Macadam failed in a way that it does not know: {type(error).__name__}: {error}.",
            next_step="Set MACADAM_DEBUG=1 and run it again for the details, and report them.",
        )
        printing.error(unexpected, json=as_json)
        return unexpected.exit_code


def _run(words: list[str]) -> int:
    options, rest = _split(words)
    if not rest or rest[0] == "help":
        printing.line(overview())
        return 0
    name = rest[0]
    if name in VERBS:
        return _run_verb(name, rest[1:], options)
    if name not in operations.GROUPS:
        raise _unknown("command", name, [*VERBS, *operations.GROUPS], "macadam --help")
    for flagged in FLAGGED:
        group, word, flag = flagged.split()
        if rest[:2] == [group, word] and flag in rest[2:]:
            return _run_verb(flagged, [w for w in rest[2:] if w != flag], options)
    known = {operation.cli.partition(" ")[2]: operation for operation in operations.in_group(name)}
    verb = rest[1] if len(rest) > 1 else "--help"
    if f"{name} {verb}" in GROUP_VERBS:
        return _run_verb(f"{name} {verb}", rest[2:], options)
    if verb in ("--help", "-h"):
        printing.line(group_page(name, known))
        return 0
    longer = " ".join(rest[1:3])
    if longer in known and longer != verb:  # such as `cost prices import` beside `cost prices`
        return _run_operation(known[longer], rest[3:], options)
    if verb not in known:
        raise _unknown(f"command in `{name}`", verb, [*known, *_verbs_in(name)], f"macadam {name} --help")
    return _run_operation(known[verb], rest[2:], options)


def _split(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options before the command, and the rest from the command on."""
    parser = Parser(prog="macadam", add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    add_options(parser)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    rest: list[str] = options.rest
    if getattr(options, "version", False):
        rest = ["version"]
    return options, rest


def _run_verb(name: str, words: list[str], options: argparse.Namespace) -> int:
    verb = find_verb(name)
    parser = verb_parser(name, verb)
    chosen = parser.parse_args(words, options)
    with Session(chosen) as session:
        return verb.run(chosen, session)


def find_verb(name: str) -> Verb:
    """Loads a verb written by hand."""
    module, _, attribute = (VERBS | GROUP_VERBS | FLAGGED)[name][0].partition(":")
    found: Verb = getattr(importlib.import_module(module), attribute)
    return found


def verb_parser(name: str, verb: Verb) -> Parser:
    parser = Parser(
        prog=f"macadam {name}",
        description=(VERBS | GROUP_VERBS | FLAGGED)[name][1] + ".",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    verb.configure(parser)
    add_options(parser.add_argument_group("everywhere"))  # type: ignore[arg-type] # a group takes arguments as a parser does
    return parser


def _run_operation(operation: Operation, words: list[str], options: argparse.Namespace) -> int:
    chosen = operation_parser(operation).parse_args(words, options)
    with Session(chosen) as session:
        arguments = _arguments(operation, chosen, session)
        session.show_answer(operation, session.call(operation, arguments))
    return 0


def operation_parser(operation: Operation) -> Parser:
    """The command of one operation: its leading fields by position, every field as a flag."""
    about = operation.summary
    if operation.prepare is not None:
        about += " This may take a while."
    known = fields.of_request(operation.request)
    leading = positional(operation, known)
    parser = Parser(
        prog=f"macadam {operation.cli}",
        usage=" ".join(["macadam", operation.cli, *(name.upper() for name in leading), "[--FIELD VALUE …]"]),
        description=about,
        epilog=f"Needs the permission {operation.permission}. Over HTTP: {operation.http}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for field in known:
        if field.name in leading:
            parser.add_argument("at_" + field.name, metavar=field.name.upper(), nargs="?", help=_help(field))
    own = parser.add_argument_group("fields") if any(f.name not in (*leading, "project") for f in known) else parser
    for field in known:
        if field.name != "project":
            _add_flag(own, field, hidden=field.name in leading)
    add_options(parser.add_argument_group("everywhere"))  # type: ignore[arg-type] # see verb_parser
    return parser


def positional(operation: Operation, known: Iterable[Field]) -> list[str]:
    """Fields that may be given by position: those in the path, else the first that is required.

    The project is an option, except for the commands that are about projects.
    """
    about_projects = operation.cli.startswith("projects ")
    candidates = [f for f in known if about_projects or f.name != "project"]
    in_path = [name for name in fields.in_path(operation) if any(f.name == name for f in candidates)]
    required = [f.name for f in candidates if f.required and f.kind in ("text", "integer", "mapping")]
    return in_path or required[:1]


def _add_flag(parser: argparse._ActionsContainer, field: Field, *, hidden: bool) -> None:
    text = argparse.SUPPRESS if hidden else _help(field)
    dest = "field_" + field.name
    if field.kind == "boolean":
        parser.add_argument(field.flag, dest=dest, action=argparse.BooleanOptionalAction, help=text)
        return
    metavar = {"integer": "N", "number": "X", "json": "JSON", "mapping": "NAME=VALUE"}.get(field.kind, "TEXT")
    if field.choices:
        metavar = "|".join(field.choices)
    parser.add_argument(field.flag, dest=dest, action="append", metavar=metavar, help=text)


def _help(field: Field) -> str:
    said = [field.about] if field.about else []
    if field.kind in ("list", "mapping"):
        said.append("may be repeated")
    if field.required:
        said.append("required")
    elif field.default not in (None, "", [], {}, ()):
        said.append(f"default: {field.default}")
    return "; ".join(said).replace("%", "%%")


def _arguments(operation: Operation, chosen: argparse.Namespace, session: Session) -> dict[str, object]:
    """The request as plain values. Raises InvalidInput, naming the field."""
    found: dict[str, object] = {}
    missing: list[str] = []
    for field in fields.of_request(operation.request):
        given = getattr(chosen, "field_" + field.name, None)
        if given is None and hasattr(chosen, "at_" + field.name):
            given = [getattr(chosen, "at_" + field.name)]
        if given is None and field.name == "project" and session.project():
            given = [session.project()]
        if isinstance(given, bool):
            found[field.name] = given
        elif given is not None:
            found[field.name] = fields.read_all(field, [_from_file(field, text) for text in given])
        elif field.required:
            missing.append(field.flag)
        elif field.name in fields.in_path(operation):
            found[field.name] = field.default  # a path has no gaps
    if missing:
        raise InvalidInput(
            f"`macadam {operation.cli}` needs {', '.join(missing)}.",
            next_step=_ALL
            if "--project" in missing and _takes_all(operation)
            else f"See `macadam {operation.cli} --help`.",
            details={"fields": [flag[2:].replace("-", "_") for flag in missing]},
        )
    return found


def _takes_all(operation: Operation) -> bool:
    return any(field.name == "project" and field.type == Somewhere for field in fields.of_request(operation.request))


def _from_file(field: Field, text: str) -> str:
    """`@FILE` stands for the file's text, `@@…` for a text that begins with @; where text by name is asked for, `@DIR`
    for the files below it, by their path.
    """
    if text.startswith("@@"):
        return text[1:]
    if not text.startswith("@"):
        return text
    if field.kind == "mapping" and Path(text[1:]).is_dir():
        return json.dumps(files_below(Path(text[1:])))
    try:
        found = Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{field.flag} names the file {text[1:]!r}, which cannot be read as text: {error}.",
            next_step="Correct the path; for a text that begins with @ write @@.",
            details={"field": field.name},
        ) from error
    if not found.strip() and field.default == "":  # it would pass for an option that was not given
        raise InvalidInput(
            f"{field.flag} names the file {text[1:]!r}, which is empty.",
            next_step=f"Correct the path, or leave {field.flag} out.",
            details={"field": field.name},
        )
    return found


def files_below(folder: Path) -> dict[str, str]:
    """The text of each file, by its path from here. Left out are hidden ones, and in the folder itself `test.yaml` and
    its like: the table that policies are held against is none of them. Raises InvalidInput.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        is_table = below.stem == "test" and below.suffix != ".cedar" and len(below.parts) == 1
        if path.is_file() and not is_table and not any(part.startswith(".") for part in below.parts):
            try:
                found[path.as_posix().removeprefix("./")] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"{path} cannot be read as text: {error}.", next_step="Remove it.") from error
    return found


def overview() -> str:
    """The page of `macadam --help`."""
    return "\n".join(
        [
            "Macadam: the paved road from raw data to AI in production that can be proved.",
            "",
            "Usage: macadam COMMAND … [--json] [--project NAME] [--home DIR] [--url URL] [--token TOKEN]",
            "",
            "Start here:",
            *_lines({name: about for name, (_, about) in VERBS.items()}),
            "",
            "By what it is about (`macadam GROUP --help` lists a group's commands):",
            *_lines({name: about for name, (_, about) in operations.GROUPS.items()}),
        ]
    )


def group_page(group: str, known: Mapping[str, Operation]) -> str:
    """The page of `macadam GROUP --help`."""
    flagged = {name.partition(" ")[2]: about for name, (_, about) in FLAGGED.items() if name.split()[0] == group}
    return "\n".join(
        [
            f"{operations.GROUPS[group][1]}.",
            "",
            f"Usage: macadam {group} COMMAND …",
            "",
            *_lines(_verbs_in(group) | {verb: operation.summary for verb, operation in known.items()} | flagged),
            "",
            f"`macadam {group} COMMAND --help` says what a command takes.",
        ]
    )


def _verbs_in(group: str) -> dict[str, str]:
    """The group's verbs that are written by hand, with what they do."""
    return {
        name.partition(" ")[2]: about + "." for name, (_, about) in GROUP_VERBS.items() if name.startswith(f"{group} ")
    }


def _lines(rows: Mapping[str, str]) -> list[str]:
    """As wide as the terminal, with what does not fit below its own beginning."""
    names = max(map(len, rows), default=0)
    width = max(shutil.get_terminal_size().columns, names + _LEAST_ABOUT)
    said = []
    for name, about in rows.items():
        below = " " * (names + 4)
        said.append(textwrap.fill(about, width, initial_indent=f"  {name:{names}}  ", subsequent_indent=below))
    return said


def _unknown(what: str, word: str, known: Iterable[str], page: str) -> InvalidInput:
    near = difflib.get_close_matches(word, list(known), n=1)
    return InvalidInput(
        f"There is no {what} called {word!r}.",
        next_step=f"Did you mean `{near[0]}`?" if near else f"See `{page}`.",
        details={"near": near},
    )


if __name__ == "__main__":
    sys.exit(main())
