"""Files for clusters (`jobs render | elastic | terraform`, `quotas render`), and what clusters say (`gpu cluster`, `gpu ray`)."""

import argparse
import shlex
import signal
import threading
from pathlib import Path

import msgspec

from macadam import operations
from macadam.compute.jobs import clusters, documents, elastic, kuberay, terraform
from macadam.compute.jobs.render_types import Files, RenderJob, RenderQuotas
from macadam.compute.jobs.workload import Workload
from macadam.compute.telemetry.requests import DeclarePods
from macadam.compute.telemetry.types import Pod
from macadam.errors import InvalidInput
from macadam.faces.session import Session, Verb
from macadam.settings import Settings
from macadam.values import utc_now

_AUTOSCALER = (
    "KubeRay's autoscaler runs beside the head and calls the cluster's API. A closed namespace lets it do neither: there give as many --least as --most, "
    "or open the namespace and give the head's pod its account's token."
)
_TARGETS = ("kubernetes", "kueue", "ray", "skypilot")


def _configure_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id or job:id")
    parser.add_argument("--to", required=True, choices=_TARGETS, help="what will run it")
    parser.add_argument("--out", metavar="DIR", help="where the files go; default: print them")
    parser.add_argument("--image", help="instead of the job's own")
    parser.add_argument("--ray", metavar="VERSION", help="of Ray in the image")
    parser.add_argument("--operator", metavar="NAMESPACE", help="of KubeRay's operator; default: default")
    parser.add_argument("--checkpoint", metavar="NAME", help="a volume claim; for skypilot a bucket's URL")
    parser.add_argument(
        "--secret", metavar="VARIABLE=NAME", action="append", help="a secret of that system; repeatable"
    )
    parser.add_argument("--spot", choices=("yes", "no"), help="default: yes for what is preemptible")


def _job(options: argparse.Namespace, session: Session) -> int:
    project = session.project()
    if not project:
        raise InvalidInput("No project was named.", next_step="Give --project, or set MACADAM_PROJECT.")
    secrets = dict(_pair(one, "--secret HF_TOKEN=NAME") for one in getattr(options, "secret", []))
    asked: dict[str, object] = {"project": project, "job": options.job, "to": options.to, "secrets": secrets}
    asked |= {
        name: getattr(options, name) for name in ("image", "ray", "operator", "checkpoint") if hasattr(options, name)
    }
    if hasattr(options, "spot"):
        asked["spot"] = options.spot == "yes"
    operations.load("jobs")
    return _write(session.call(operations.of_request(RenderJob), asked), options, session)


def _configure_quotas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flavors", metavar="FILE", required=True, help="JSON: the cluster's kinds of GPU nodes")
    parser.add_argument("--out", metavar="DIR", help="where the files go; default: print them")


def _quotas(options: argparse.Namespace, session: Session) -> int:
    flavors = _read_json(Path(options.flavors))
    operations.load("quotas")
    return _write(session.call(operations.of_request(RenderQuotas), {"flavors": flavors}), options, session)


def _configure_terraform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cloud", required=True, choices=("aws", "gcp"))
    parser.add_argument(
        "--pool",
        required=True,
        action="append",
        metavar="KEY=VALUE,…",
        help="name, machine, least, most, spot, accelerator, per_node, disk (GB); repeatable",
    )
    parser.add_argument("--out", metavar="DIR", help="where main.tf.json goes; default: print it")


def _terraform(options: argparse.Namespace, session: Session) -> int:
    pools = [_pool(text) for text in options.pool]
    module = terraform.render(options.cloud, pools)
    text = msgspec.json.format(msgspec.json.encode(module), indent=2).decode() + "\n"
    notes = ("Its structure was checked. What a provider would refuse, `terraform plan` says.",)
    return _write(Files(files={"main.tf.json": text}, notes=notes), options, session)


def _configure_elastic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="ENDPOINT", help="what is scaled")
    parser.add_argument("--by", choices=("keda", "hpa", "ray"), default="keda", help="what scales it; default: keda")
    parser.add_argument("--image", required=True, help="of its replicas")
    parser.add_argument("--run", metavar="COMMAND", default="", help="what a replica runs, as typed in a shell")
    parser.add_argument("--app", metavar="MODULE:APP", default="", help="for ray: the Serve application in the image")
    parser.add_argument("--port", type=int, default=8000, help="on which a replica answers; default: 8000")
    parser.add_argument("--gpus", type=int, default=0, help="of one replica; default: 0")
    parser.add_argument("--gpu", metavar="MODEL", default="", help="the catalogue's name; default: any")
    parser.add_argument("--cpus", type=float, default=1.0, help="cores of one replica; default: 1")
    parser.add_argument("--memory", metavar="GIB", type=int, default=4, help="of one replica; default: 4")
    parser.add_argument("--least", type=int, default=0, help="replicas; 0: none without load; default: 0")
    parser.add_argument("--most", type=int, default=1, help="replicas; default: 1")
    parser.add_argument("--target", type=float, default=8.0, help="load of one replica that is aimed at; default: 8")
    parser.add_argument("--query", metavar="PROMQL", default="", help="one number: the load of all replicas")
    parser.add_argument("--prometheus", metavar="URL", default="", help="where the query is asked")
    parser.add_argument("--ray", metavar="VERSION", default="2.52.0", help="of Ray in the image")
    parser.add_argument("--out", metavar="DIR", help="where the file goes; default: print it")


def _elastic(options: argparse.Namespace, session: Session) -> int:
    project = session.project()
    if not project:
        raise InvalidInput("No project was named.", next_step="Give --project, or set MACADAM_PROJECT.")
    command = tuple(shlex.split(options.run)) or (("serve",) if options.by == "ray" else ())
    workload = Workload(
        name=options.name, project=project, owner=f"endpoint:{options.name}", image=options.image, command=command,
        port=options.port, gpus=options.gpus, gpu=options.gpu, cpu_milli=round(options.cpus * 1000),
        memory=options.memory << 30,
    )  # fmt: skip
    notes: tuple[str, ...] = ()
    if options.by == "ray":
        notes = (_AUTOSCALER,) if options.most > options.least else ()
        bounds = {"least": options.least, "most": options.most}
        objects = [kuberay.ray_service(workload, ray=options.ray, import_path=options.app, **bounds, queued=False)]
    else:
        plan = elastic.Plan(
            least=options.least, most=options.most, target=options.target, query=options.query,
            address=options.prometheus,
        )  # fmt: skip
        objects = elastic.endpoint(workload, plan, by=options.by)
    text = documents.written(objects)
    return _write(Files(files={"endpoint.yaml": text}, notes=notes), options, session)


def _pool(text: str) -> terraform.Pool:
    """Raises InvalidInput for what is no pool."""
    given = dict(_pair(part, "--pool name=h100,machine=p5.48xlarge,most=4") for part in text.split(","))
    try:
        return msgspec.convert(given, terraform.Pool, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"--pool {text}: {error}.", next_step="See `macadam jobs terraform --help`.") from error


def _write(found: Files, options: argparse.Namespace, session: Session) -> int:
    if hasattr(options, "out"):
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in found.files.items():
            (folder / name).write_text(text, encoding="utf-8")
    if session.json:
        session.show(found)
        return 0
    for name, text in found.files.items():
        session.say(f"Wrote {Path(options.out) / name}." if hasattr(options, "out") else text)
    for one in found.candidates:
        kind = "spot" if one["spot"] else "on demand"
        place = f"{one['cloud']}/{one['region']}".rstrip("/")
        session.say(f"# {one['hourly']}/h  {one['gpu']} on {place}, {kind}, as of {one['dated']}")
    for note in found.notes:
        session.say(f"# Note: {note}")
    return 0


def _configure_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", metavar="SECONDS", type=float, default=15.0, help="default: 15")
    parser.add_argument("--turns", metavar="N", type=int, default=0, help="stop after so many; default: until Ctrl-C")


def _cluster(options: argparse.Namespace, session: Session) -> int:
    """Raises Unavailable if the cluster does not answer: whoever runs it starts it again."""
    if not options.every > 0:
        raise InvalidInput(f"--every is {options.every}.", next_step="Give seconds, such as 15.")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    operations.load("gpu")
    done, told = 0, set[Pod]()
    while not stop.is_set():
        found = clusters.pod_owners(Settings.load().clusters)
        # What was said once is not said again: each call leaves a leaf.
        if new := [pod for pod in found if pod not in told]:
            session.call(operations.of_request(DeclarePods), {"pods": msgspec.to_builtins(new)})
        told = set(found)
        done += 1
        session.show({"pods": len(found)}) if session.json else session.say(f"{len(found)} pods have owners.")
        if done == options.turns:
            break
        stop.wait(options.every)
    return 0


def _configure_ray(_: argparse.ArgumentParser) -> None:
    """Nothing beyond what every command takes."""


def _ray(_: argparse.Namespace, session: Session) -> int:
    rows = clusters.ray_views(Settings.load().clusters, utc_now())
    session.show([msgspec.to_builtins(row) for row in rows], title="What Ray believes is used")
    return 0


def _pair(text: str, example: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise InvalidInput(f"{text!r} is no NAME=VALUE.", next_step=f"Write it as {example}.")
    return name.strip(), value.strip()


def _read_json(path: Path) -> object:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}.", next_step="Give a JSON file.") from error


JOB = Verb(configure=_configure_job, run=_job)
QUOTAS = Verb(configure=_configure_quotas, run=_quotas)
ELASTIC = Verb(configure=_configure_elastic, run=_elastic)
TERRAFORM = Verb(configure=_configure_terraform, run=_terraform)
CLUSTER = Verb(configure=_configure_cluster, run=_cluster)
RAY = Verb(configure=_configure_ray, run=_ray)
