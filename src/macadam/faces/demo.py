"""`macadam demo`: the flights project driven over the whole road, from raw files to a prediction that is proved.

Everything runs as a user would run it: the project is applied, the gateway is a process of its own, the replay goes over
HTTP, the bundle is checked by the independent verifier. The home is left for `macadam up`.
"""

import argparse
import random
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from macadam.app.platform import Platform
from macadam.compute.waterfall.requests import RecordWork
from macadam.delivery import flows
from macadam.errors import Conflict, GateRefused, IntegrityError, NotFound
from macadam.faces import costs, replay
from macadam.faces.session import Session, Verb
from macadam.faces.story import Story
from macadam.features.types import ListTrainingSets
from macadam.governance.types import Inspect
from macadam.ledger.types import ShowCheckpoint, VerifyLedger
from macadam.models.types import (
    Approve,
    Evaluate,
    Evaluation,
    Interval,
    ListEvaluations,
    Parameter,
    RegisterVersion,
    SetAlias,
    ShowRun,
    Train,
)
from macadam.serving.types import LiveAccuracy, Prove
from macadam.settings import Settings

PROJECT, MODEL, ENDPOINT = "flights", "delay-risk", "delay-risk"
_MARK = ".macadam-demo"
_BASELINE: dict[str, Parameter] = {
    "columns": "schedule",
    "learning_rate": 0.1,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 200,
    "max_iter": 150,
}
_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the chapters share. raw: where the raw files are; project: the user's project; proof: the bundle."""

    story: Story
    platform: Platform
    directory: Path
    port: int

    @property
    def project(self) -> Path:
        return self.directory / "flights"

    @property
    def raw(self) -> Path:
        return self.project / "raw"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--directory", default="demo", help="where the demo works; made anew; default: ./demo")
    parser.add_argument("--gateway-port", type=int, default=0, help="default: a free one")


def _run(options: argparse.Namespace, session: Session) -> int:  # noqa: ARG001 - the demo prints a story, not an answer
    directory = _fresh(Path(options.directory))
    shutil.copytree(_example(), directory / "flights", ignore=shutil.ignore_patterns("raw", "__pycache__"))
    _commit(directory / "flights")
    story = Story()
    story.say("[bold]Macadam: from raw flights to a prediction that can be proved[/bold]")
    story.say("Will this flight arrive more than 15 minutes late, asked at its scheduled departure?")
    with Platform(Settings.load(home=directory / "home")) as platform:
        port = options.gateway_port or replay.free_port()
        demo = Demo(story=story, platform=platform, directory=directory, port=port)
        _chapters(demo)
    _farewell(story, directory)
    return 0


def _chapters(demo: Demo) -> None:
    with demo.story.chapter("Raw files"):
        _extract(demo)
    with demo.story.chapter("Apply the project: ingest under contracts, features, training, evaluation"):
        applied = _first_apply(demo)
    with demo.story.chapter("What June says, which no training step has seen"):
        held_out = _judge(demo)
    with demo.story.chapter("The gate refuses a bad version"):
        _bad_version(demo, held_out)
    with demo.story.chapter("Somebody else approves, champion moves, the endpoint opens"):
        _approve(demo, applied)
    with demo.story.chapter("Two weeks of July, live through the gateway"):
        predictions = _live(demo, held_out)
    with demo.story.chapter("What this road cost"):
        costs.tell(demo.story, demo.platform, PROJECT, MODEL)
    with demo.story.chapter("Prove one prediction, offline"):
        _prove(demo, predictions)
    with demo.story.chapter("Is everything still as it was recorded?"):
        _verify(demo)
    with demo.story.chapter("Inspection: 42 points"):
        _inspect(demo)


def _fresh(directory: Path) -> Path:
    """An empty directory for the demo. Raises Conflict if what is there was not made by a demo."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARK).exists():
            raise Conflict(
                f"{directory} has files that no demo made.", next_step="Choose another place with --directory."
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).touch()
    return directory.resolve()


def _example() -> Path:
    for root in (Path.cwd(), *Path(__file__).parents):
        if (root / "examples" / "flights" / "macadam.yaml").exists():
            return root / "examples" / "flights"
    raise NotFound(
        "The flights example is not here: it is part of the source, not of the installed package.",
        next_step="Run the demo in a clone of the repository, with `make demo`.",
    )


def _extract(demo: Demo) -> None:
    subprocess.run([sys.executable, "extract.py"], cwd=demo.project, check=True, capture_output=True)
    files = sorted(path for path in demo.raw.rglob("*.csv"))
    size = sum(path.stat().st_size for path in files) / _MEGABYTE
    demo.story.say(f"All flights that left New York in 2013, month by month: {len(files)} CSV files, {size:.0f} MB.")
    demo.story.fact("the project", str(demo.project))


def _first_apply(demo: Demo) -> flows.Applied:
    made = flows.plan(demo.platform, demo.project)
    demo.story.say(f"`macadam plan`: {len(made.steps)} steps. `macadam apply`, which a kill would only interrupt:")
    with demo.story.bar("applying", len(made.steps)) as bars:

        def on_event(event: flows.Event) -> None:
            if event.kind in ("done", "before", "skipped"):
                bars.advance(bars.task_ids[0])
            bars.update(bars.task_ids[0], description=event.title)

        applied = flows.apply(demo.platform, demo.project, on_event)
    _tell_ingest(demo, applied)
    demo.story.table(
        ("step", "seconds"),
        [(step.title, f"{step.seconds:.1f}") for step in applied.steps if step.seconds >= 0.5],  # noqa: PLR2004
    )
    return applied


def _tell_ingest(demo: Demo, applied: flows.Applied) -> None:
    reports = [step.outcome for step in applied.steps if "quarantined" in step.outcome]
    rows: dict[str, list[int]] = {}
    rules: dict[str, dict[str, int]] = {}
    for report in reports:
        table = str(report["table"])
        sums = rows.setdefault(table, [0, 0, 0])
        for place, field in enumerate(("rows_in", "published", "quarantined")):
            sums[place] += _whole(report[field])
        by_rule = report["by_rule"]
        for rule, count in by_rule.items() if isinstance(by_rule, dict) else ():
            rules.setdefault(table, {}).setdefault(rule, 0)
            rules[table][rule] += count
    demo.story.table(
        ("table", "rows in", "published", "quarantined"),
        [(table, *(f"{n:,}" for n in sums)) for table, sums in rows.items()],
    )
    demo.story.say("Why rows were quarantined (a row may break several rules):")
    for table, counts in rules.items():
        for rule, count in sorted(counts.items(), key=lambda item: -item[1]):
            if count:
                demo.story.fact(f"{table}: {rule}", f"{count:,}")


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _judge(demo: Demo) -> Evaluation:
    evaluation = demo.platform.call(ListEvaluations(project=PROJECT, model=MODEL, limit=1))[0]
    version = replay.version_of(demo.platform, PROJECT, MODEL, evaluation.version)
    run = demo.platform.call(ShowRun(project=PROJECT, run=version.run))
    demo.story.say(f"Version {evaluation.version}, {evaluation.rows:,} flights of June, thresholds declared before:")
    for name, metric in evaluation.metrics.items():
        demo.story.fact(name, _interval(metric))
    demo.story.say("Trained by a run that can be repeated:")
    for name, value in replay.run_facts(run):
        demo.story.fact(name, value)
    return evaluation


def _interval(metric: Interval) -> str:
    return f"{metric.value:.4f}   95% interval {metric.low:.4f} to {metric.high:.4f}"


def _bad_version(demo: Demo, good: Evaluation) -> None:
    sets = {s.name: s.ref for s in demo.platform.call(ListTrainingSets(project=PROJECT))}
    split = {
        name: next(ref for key, ref in sets.items() if key.endswith(name)) for name in ("train", "tune", "holdout")
    }
    run = demo.platform.call(
        Train(
            project=PROJECT,
            model=MODEL,
            source=str(demo.project),
            training_sets={"train": split["train"], "tune": split["tune"]},
            params=_BASELINE,
        )
    )
    version = demo.platform.call(RegisterVersion(project=PROJECT, model=MODEL, run=run.id)).number
    measured = demo.platform.call(
        Evaluate(project=PROJECT, model=MODEL, version=str(version), training_set=split["holdout"])
    )
    demo.story.say("A second version, from the columns of the timetable alone. ROC AUC in June, side by side:")
    demo.story.fact(f"version {good.version}, all features", _interval(good.metrics["roc_auc"]))
    demo.story.fact(f"version {version}, timetable alone", _interval(measured.metrics["roc_auc"]))
    try:
        demo.platform.call(SetAlias(project=PROJECT, model=MODEL, alias="champion", version=str(version)))
    except GateRefused as refused:
        demo.story.say(f"It asks to be champion. [red]{refused.what}[/red]")
    else:
        raise IntegrityError(f"The gate let version {version} pass.", next_step="Look at gates.yaml: it should not.")


def _approve(demo: Demo, applied: flows.Applied) -> None:
    for held in applied.held:
        demo.story.say(f"Version {held.version} waits: {'; '.join(held.reasons)}.")
        maria = replay.token_for(demo.platform, "principal:maria", "person", PROJECT, "approver")
        approval = demo.platform.call(
            Approve(project=PROJECT, model=MODEL, version=str(held.version), note="June looks right. Go."), token=maria
        )
        demo.story.say(f"{approval.approver} approves exactly {approval.artifact[:19]}…")
    again = flows.apply(demo.platform, demo.project)
    for step in again.steps:
        if not step.reused:
            demo.story.fact("✓", step.title)
    if again.state != "done":
        raise IntegrityError(
            f"The second apply ended as {again.state!r}.", next_step="Run macadam plan in the project."
        )


def _live(demo: Demo, held_out: Evaluation) -> list[str]:
    token = replay.token_for(demo.platform, "service:replay", "service", PROJECT, "caller")
    sys.path.insert(0, str(demo.project))  # the example's scripts import each other
    try:
        script = runpy.run_path(str(demo.project / "replay.py"))
    finally:
        sys.path.remove(str(demo.project))
    events = replay.Events(**{name: script[name](demo.raw) for name in ("questions", "facts", "labels")})
    work = replay.Work()
    with (
        replay.gateway(demo.platform.settings, demo.port, work) as address,
        demo.story.bar("asking", len(events.questions)) as bars,
    ):
        player = replay.Player(platform=demo.platform, project=PROJECT, endpoint=ENDPOINT, address=address, token=token)
        outcome = player.play(events, lambda n: bars.advance(bars.task_ids[0], n))
    asked = len(outcome.predictions)
    demo.platform.call(
        RecordWork(project=PROJECT, subject=f"endpoint:{ENDPOINT}", calls=asked, wall=work.wall, cpu=work.cpu)
    )
    sealed = replay.seal(demo.platform, PROJECT)
    _tell_live(demo, held_out, outcome, sealed)
    return outcome.predictions


def _tell_live(demo: Demo, held_out: Evaluation, outcome: "replay.Outcome", sealed: "replay.Sealed") -> None:
    story = demo.story
    story.say(
        f"{len(outcome.predictions):,} questions over HTTP in {outcome.seconds:.1f} s, each at its scheduled departure; "
        f"{outcome.pushed:,} departures, landings and weather readings updated the features as they became known."
    )
    story.fact("median, 99% of the answers within", f"{outcome.median_ms:.2f} ms, {outcome.p99_ms:.2f} ms")
    counts = (len(outcome.predictions), sealed.records, sealed.answers)
    story.fact("answered = journaled = counted", " = ".join(f"{count:,}" for count in counts))
    if len(set(counts)) != 1:
        raise IntegrityError(f"The three counts differ: {counts}.", next_step="Run macadam ledger verify.")
    live = demo.platform.call(LiveAccuracy(project=PROJECT, endpoint=ENDPOINT))
    auc = held_out.metrics["roc_auc"]
    story.table(
        ("", "flights", "ROC AUC"),
        [
            ("June, held out", f"{held_out.rows:,}", f"{auc.value:.4f} ({auc.low:.4f} to {auc.high:.4f})"),
            ("July 1 to 14, live", f"{live.labelled:,}", f"{live.metrics['roc_auc']:.4f}"),
        ],
    )


def _prove(demo: Demo, predictions: list[str]) -> None:
    chosen = random.choice(predictions)  # noqa: S311 - any prediction can be proved, so any will do
    bundle = demo.platform.call(Prove(project=PROJECT, prediction=chosen)).bundle.encode()
    proof, key = demo.directory / "proof.json", demo.directory / "ledger.key"
    proof.write_bytes(bundle)
    key.write_text(demo.platform.call(ShowCheckpoint()).key + "\n")
    demo.story.fact("macadam prove", f"prediction:{chosen}, {len(bundle) / 1024:.1f} KB")
    code, said = _independent(proof, key)
    holds, _, proved = said.partition("PROVED")
    demo.story.say(f"`python -m macadam_verify proof.json --key ledger.key`: {holds.count(' ok ')} links hold.")
    demo.story.say(f"PROVED{proved}" if proved else said)
    if code:
        raise IntegrityError("The verifier did not accept the bundle.", next_step=f"Look at {proof}.")
    altered = bytearray(bundle)
    altered[len(altered) // 3] ^= 1
    broken = demo.directory / "proof-with-one-bit-flipped.json"
    broken.write_bytes(altered)
    code, said = _independent(broken, key)
    demo.story.say(f"With one bit flipped the verifier ends with {code}: [red]{said.strip().splitlines()[-1]}[/red]")
    if not code:
        raise IntegrityError("The verifier accepted an altered bundle.", next_step=f"Look at {broken}.")


def _independent(bundle: Path, key: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "macadam_verify", str(bundle), "--key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own verifier
    return done.returncode, (done.stdout + done.stderr).replace("[", "\\[")


def _verify(demo: Demo) -> None:
    found = demo.platform.call(VerifyLedger())
    demo.story.say(
        f"`macadam ledger verify`: {found.size:,} leaves under {found.checkpoints:,} signed checkpoints, "
        f"{found.objects:,} objects and snapshots read again. {len(found.problems)} problems."
    )
    if found.problems:
        raise IntegrityError("; ".join(found.problems[:3]), next_step="Run macadam ledger verify.")


def _inspect(demo: Demo) -> None:
    inspection = demo.platform.call(Inspect(project=PROJECT))
    for status, count in sorted(inspection.counts.items(), key=lambda item: -item[1]):
        demo.story.fact(status.replace("_", " "), str(count))
    demo.story.table(
        ("point", "status"),
        [(f"{p.id}  {p.check}", p.status.replace("_", " ")) for p in inspection.points if p.status != "did_not_run"],
    )


def _commit(project: Path) -> None:
    """Puts the project under git, as a project is: its runs then name a commit that holds all of their code."""
    git = shutil.which("git")
    if git is None:  # the inspection says then that the run lacks a commit
        return
    identity = (
        "-c",
        "user.name=Demo",
        "-c",
        "user.email=demo@localhost",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=",
    )
    for verb in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "The flights example")):
        subprocess.run((git, "-C", str(project), *identity, *verb), check=True)  # noqa: S603 - fixed verbs


def _farewell(story: Story, directory: Path) -> None:
    place = directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory
    story.say("")
    story.say(f"[bold]Done in {story.seconds:.0f} s.[/bold] Everything is in {place}. Try next:")
    for command in ("up", "ledger log", f"inspect --project {PROJECT}"):
        story.say(f"  {sys.argv[0]} {command} --home {place / 'home'}")


VERB = Verb(configure=_configure, run=_run)
