"""The command line: what it takes, what it prints, and how it ends."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from macadam import operations
from macadam.errors import InvalidInput
from macadam.faces import callers, cli, fields
from macadam.operations import Operation, Request
from macadam.testing import Http

Run = Callable[..., tuple[int, str, str]]
OPERATIONS = list(operations.table().values())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty directory with a fresh home; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("MACADAM_URL", "MACADAM_TOKEN", "MACADAM_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MACADAM_HOME", str(tmp_path / "home"))

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(words)
        except SystemExit as ended:  # argparse's --help
            code = int(str(ended.code or 0))
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def steady(text: str) -> str:
    """Takes out what differs from run to run: times and ids."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", text)


def test_json_is_one_document_with_the_fields_of_the_answer(run: Run) -> None:
    code, out, err = run("projects", "create", "flights", "--risk", "high", "--json")
    assert (code, err) == (0, "")
    assert steady(out) == (
        '{\n  "name": "flights",\n  "owner": "principal:local",\n  "description": "",\n  "risk": "high",\n'
        '  "location": "",\n  "created": "TIME",\n  "created_by": "principal:local"\n}\n'
    )


def test_an_error_in_json_is_a_problem_with_the_exit_code(run: Run) -> None:
    code, out, err = run("--json", "projects", "show", "missing")
    assert (code, err) == (6, "")
    said = json.loads(out)
    assert said["type"] == "urn:macadam:problem:not-found"
    assert (said["status"], said["code"], said["exit_code"]) == (404, "not-found", 6)
    assert said["next"]


def test_an_error_for_a_person_is_a_line_and_the_next_step(run: Run) -> None:
    code, out, err = run("projects", "show", "missing")
    assert (code, out) == (6, "")
    assert err.startswith("Error: ")
    assert err.splitlines()[1].startswith("Next: ")


def test_answers_for_a_person_are_tables(run: Run) -> None:
    run("projects", "create", "flights")
    code, out, _ = run("projects", "list")
    assert code == 0
    assert "created by" in out
    assert "flights" in out
    assert "{" not in out


@pytest.mark.parametrize(
    ("words", "near"),
    [(("verison",), "version"), (("project", "list"), "projects"), (("projects", "creat"), "create")],
)
def test_an_unknown_command_gets_a_near_one(run: Run, words: tuple[str, ...], near: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert f"Did you mean `{near}`?" in err


def test_missing_fields_are_all_named_at_once(run: Run) -> None:
    code, _, err = run("roles", "grant")
    assert code == 2
    assert "--project, --principal, --role" in err


def test_an_unknown_flag_is_an_error_with_the_page_to_read(run: Run) -> None:
    code, _, err = run("projects", "create", "a", "--colour", "red")
    assert code == 2
    assert "--colour" in err
    assert "macadam projects create --help" in err


def test_a_number_that_is_none_names_its_field(run: Run) -> None:
    code, out, _ = run("tokens", "issue", "principal:local", "--days", "many", "--json")
    assert code == 2
    assert json.loads(out)["details"] == {"field": "days"}


def test_the_project_comes_from_the_flag_then_the_environment_then_the_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("of-file", "of-environment", "of-flag"):
        run("projects", "create", name)
    (tmp_path / "macadam.yaml").write_text("project: of-file\n")

    def grant(*words: str) -> str:
        return str(
            json.loads(run("roles", "grant", "principal:local", "--role", "viewer", *words, "--json")[1])["project"]
        )

    assert grant() == "of-file"
    monkeypatch.setenv("MACADAM_PROJECT", "of-environment")
    assert grant() == "of-environment"
    assert grant("--project", "of-flag") == "of-flag"


def test_a_project_file_that_is_no_yaml_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "macadam.yaml").write_text("project: [unclosed\n")
    code, _, err = run("roles", "list")
    assert code == 2
    assert "macadam.yaml is not YAML" in err


def test_text_can_come_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "about.txt").write_text("from a file")
    assert json.loads(run("projects", "create", "a", "--description", "@about.txt", "--json")[1])["description"] == (
        "from a file"
    )
    assert json.loads(run("projects", "create", "b", "--description", "@@home", "--json")[1])["description"] == "@home"
    code, _, err = run("projects", "create", "c", "--description", "@missing.txt")
    assert code == 2
    assert "missing.txt" in err


def test_policies_on_the_road_end_with_20_and_say_who_does_what_next(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "macadam.yaml").write_text("project: {name: p}")
    (tmp_path / "policies" / "a.cedar").write_text(
        '@id("a") forbid (principal, action in Action::"calling", resource);'
    )
    (tmp_path / "policies" / "test.yaml").write_text("- {who: caller, does: predictions:create, expect: deny}")
    code, out, _ = run("apply")
    assert code == 20
    assert "Version 1 of the policies waits for approval: 0 of 1." in out
    assert "someone other than principal:local runs `macadam policy approve 1`, then `macadam apply` again" in out
    # The folder by hand is the text that apply proposed: the table beside is no policy.
    said = json.loads(run("policy", "propose", "@policies", "--json")[1])
    assert (said["version"], list(said["files"])) == (1, ["policies/a.cedar"])


def test_a_list_flag_may_be_repeated(run: Run) -> None:
    words = ("tokens", "issue", "principal:local", "--scopes", "models:read", "--scopes", "projects:*", "--json")
    assert json.loads(run(*words)[1])["scopes"] == ["models:read", "projects:*"]
    assert json.loads(run(*words[:3], "--scopes", '["models:read"]', "--json")[1])["scopes"] == ["models:read"]


def test_a_repeated_idempotency_key_gets_the_first_answer(run: Run) -> None:
    words = ("projects", "create", "once", "--json", "--idempotency-key", "k")
    assert run(*words) == run(*words)


def test_a_token_of_nobody_is_refused_and_nothing_is_done(run: Run) -> None:
    code, _, err = run("projects", "create", "a", "--token", "mcd_guessed")
    assert code == 3
    assert "Next: " in err
    assert run("projects", "list")[1].strip() == "None."


def test_a_server_that_is_not_there_is_said_to_be_so(run: Run) -> None:
    code, _, err = run("projects", "list", "--url", "http://127.0.0.1:9")
    assert code == 12
    assert "http://127.0.0.1:9 does not answer" in err


def test_an_unexpected_error_asks_to_be_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "overview", lambda: 1 / 0)
    code, _, err = run("--help")
    assert code == 70
    assert "MACADAM_DEBUG=1" in err
    assert "Traceback" not in err


def test_ctrl_c_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "overview", interrupt)
    assert run("--help")[0] == 130


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_every_operation_has_a_help_page_that_names_its_fields(operation: Operation, run: Run) -> None:
    code, out, _ = run(*operation.cli.split(), "--help")
    assert code == 0
    for field in fields.of_request(operation.request):
        assert field.flag in out or field.name.upper() in out
    assert operation.permission in out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_written_by_hand_has_a_help_page(verb: str, run: Run) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert cli.VERBS[verb][1] in " ".join(out.split())


class Sample(msgspec.Struct, frozen=True):
    x: int


class EveryKind(Request[None], frozen=True, kw_only=True):
    """Show every kind of field.

    text: a word; number: a figure, such as 1: 2. pairs: by name.
    """

    text: str
    whole: int = 1
    number: float = 0.5
    yes: bool = False
    either: str | None = None
    words: tuple[str, ...] = ()
    pairs: dict[str, int] = msgspec.field(default_factory=dict)
    struct: Sample | None = None
    structs: list[Sample] = msgspec.field(default_factory=list)


def test_fields_are_described_by_their_types_and_the_docstring() -> None:
    known = {field.name: field for field in fields.of_request(EveryKind)}
    kinds = {name: field.kind for name, field in known.items()}
    assert kinds == {
        "text": "text",
        "whole": "integer",
        "number": "number",
        "yes": "boolean",
        "either": "text",
        "words": "list",
        "pairs": "mapping",
        "struct": "json",
        "structs": "json",
    }
    assert known["text"].required
    assert (known["text"].about, known["pairs"].about) == ("a word", "by name")
    assert known["number"].about == "a figure, such as 1: 2"
    assert known["number"].default == 0.5


def test_texts_become_values_of_the_fields_kind() -> None:
    known = {field.name: field for field in fields.of_request(EveryKind)}
    assert fields.read_all(known["pairs"], ["a=1", "b=2"]) == {"a": 1, "b": 2}
    assert fields.read_all(known["pairs"], ['{"a": 1}']) == {"a": 1}
    assert fields.read_all(known["words"], ["x", "y"]) == ["x", "y"]
    assert fields.read_all(known["struct"], ['{"x": 1}']) == {"x": 1}
    for name, texts in {
        "pairs": ["a"],
        "struct": ["{"],
        "whole": ["1.5"],
        "yes": ["maybe"],
        "text": ["a", "b"],
    }.items():
        with pytest.raises(InvalidInput, match=name):
            fields.read_all(known[name], texts)


def test_a_reader_that_leaves_early_ends_the_command_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_text: str) -> int:
        raise BrokenPipeError

    with Path("sink").open("w", encoding="utf-8") as sink:
        monkeypatch.setattr(sys, "stdout", sink)
        monkeypatch.setattr(cli.printing, "line", leave)
        assert cli.main(["--help"]) == 141


def test_the_same_command_goes_to_a_server_when_one_is_named(
    run: Run, http: Http, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "Client", lambda _url, token, **_: http.client(token))
    code, out, _ = run("projects", "show", "flights", "--url", "http://x", "--token", admin, "--json")
    assert (code, json.loads(out)["name"]) == (0, "flights")
    assert not Path("home").exists()


def test_a_pattern_is_told_in_words_and_a_choice_with_what_there_is(run: Run) -> None:
    run("projects", "create", "p")
    code, _, err = run("cost", "breakdown", "--project", "p", "--month", "May")
    assert (code, "Expected YYYY-MM; empty: this month, UTC - at `$.month`" in err) == (2, True)
    code, _, err = run("jobs", "list", "--project", "p", "--state", "odd")
    assert (code, "it is one of nothing, cancelled, failed, open" in err) == (2, True)


def test_where_everything_can_be_asked_for_that_is_said(run: Run) -> None:
    code, _, err = run("gpu", "list")
    assert code == 2
    assert "--project '*'" in err


def test_a_groups_page_is_folded_to_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ("jobs", "cost", "gpu", "quotas"):
        _, out, _ = run(group, "--help")
        assert all(len(line) <= 80 for line in out.splitlines()), group


def test_what_a_job_is_called_with_is_no_option_of_ours(run: Run) -> None:
    code, out, err = run("jobs", "start", "--project", "nobody", "--", "python", "--json")
    assert (code, out) == (6, "")
    assert err.startswith("Error: There is no project 'nobody'.")


def test_a_picture_that_could_not_be_written_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    for words in (
        ("simulate", "packing", "--nodes", "missing", "--pods", "missing"),
        ("simulate", "queue", "--jobs", "missing", "--gpus", "4"),
        ("simulate", "spot", "--zones", "missing", "--deadline", "72"),
        ("rightsize", "llm", "--trace", "missing", "--model", "missing", "--slo", "1,1"),
        ("rightsize", "elastic", "--trace", "missing", "--capacity", "2", "--hourly", "1"),
        ("decide", "train", "--question", "missing"),
    ):
        code, _, err = run(*words, "--plot", str(tmp_path / "nowhere" / "p.svg"))
        assert code == 2
        assert "nowhere for p.svg" in err, words
        code, _, err = run(*words, "--plot", str(tmp_path))
        assert "is a directory" in err, words
