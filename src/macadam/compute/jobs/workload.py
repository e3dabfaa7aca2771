"""What a cluster outside this machine is asked to run, in one shape for all of them: Kubernetes, Ray, SkyPilot.

It says what the work needs, not where it goes. The modules beside it render it; none of them asks the cluster.
"""

import math
import re

import msgspec

from macadam.errors import InvalidInput

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
CHECKPOINT = "/checkpoint"  # where a workload finds what outlives it; MACADAM_CHECKPOINT says so too
_MIG = re.compile(r"[1-9][0-9]?g\.[1-9][0-9]{0,2}gb(\.me)?\Z")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}\Z")
_SECRETIVE = re.compile(r"(PASSWORD|PASSWD|SECRET|(^|_)TOKEN$|PRIVATE_KEY|API_?KEY|CREDENTIAL)", re.IGNORECASE)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One job, or one endpoint's replica.

    name: unique in its project, such as a job's id; owner: whose its use is, 'job:…' or 'endpoint:…'. cpu_milli: thousandths
    of a core; memory, scratch (of a temporary folder): bytes; all are of ONE member, as gpus is. gpu: the catalogue's
    name, '' = any. mig: the profile of a slice ('1g.10gb'), of which `gpus` are wanted, '' = whole GPUs. members: of a gang, that
    run `command` with MACADAM_RANK 0 to members - 1. priority: higher goes first. deadline: seconds after which it is ended, 0 = none.
    spot: may run on machines that can be taken away; attempts: how often it is started again then. grace: seconds between the
    request to end and the end. secrets: variable → name of a secret that the cluster holds; values of
    secrets never stand in what is rendered. checkpoint: the storage that outlives an attempt (a volume claim, a bucket's URL), mounted at
    CHECKPOINT, '' = none. port: of an endpoint.
    """

    name: str
    project: str
    image: str
    command: tuple[str, ...]
    owner: str = ""
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    cpu_milli: int = 1000
    memory: int = 1 << 30
    scratch: int = 1 << 30
    gpus: int = 0
    gpu: str = ""
    mig: str = ""
    members: int = 1
    priority: int = 0
    deadline: int = 0
    spot: bool = False
    attempts: int = 1
    grace: int = 30
    checkpoint: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.name and self.project), "has no name or project", "Name both.")
        _require(bool(_IMAGE.match(self.image)), f"has the image {self.image!r}", "Name a container image.")
        _require(bool(self.command), "has no command", "Say what to run.")
        _require(not any("\0" in word for word in self.command), "has a zero byte in its command", "Remove it.")
        for name, least in (("cpu_milli", 1), ("memory", 1 << 20), ("scratch", 0), ("gpus", 0), ("members", 1)):
            value = getattr(self, name)
            _require(value >= least, f"has {name} {value}", f"Give at least {least}.")
        for name, least in (("deadline", 0), ("attempts", 1), ("grace", 0), ("port", 0)):
            value = getattr(self, name)
            _require(least <= value < 1 << 31, f"has {name} {value}", f"Give {least} to {(1 << 31) - 1}.")
        _require(self.port < 1 << 16, f"has port {self.port}", "Give a TCP port.")
        _require(
            not self.mig or bool(_MIG.match(self.mig)), f"has the MIG profile {self.mig!r}", "Write it as 1g.10gb."
        )
        _require(not (self.mig and not self.gpus), "names a MIG profile and no GPU", "Say how many slices, as gpus.")
        _check_variables(self.environment, self.secrets)

    @property
    def resource(self) -> str:
        """What Kubernetes calls its GPUs: https://docs.nvidia.com/datacenter/cloud-native/kubernetes/latest/index.html."""
        return f"nvidia.com/mig-{self.mig}" if self.mig else "nvidia.com/gpu"


def _check_variables(environment: dict[str, str], secrets: dict[str, str]) -> None:
    for name in (*environment, *secrets):
        _require(bool(_VARIABLE.match(name)), f"has the variable {name!r}", "Use letters, digits and '_'.")
    for name in environment:
        _require(
            not _SECRETIVE.search(name),
            f"would write the value of {name} into files",
            f"Give the name of a secret that the cluster holds, as secrets: {{{name}: NAME}}.",
        )
    both = sorted(set(environment) & set(secrets))
    _require(not both, f"gives {', '.join(both)} twice", "Give each variable once.")


def _require(holds: bool, what: str, next_step: str) -> None:  # noqa: FBT001 - the condition is the sentence's subject
    if not holds:
        raise InvalidInput(f"The workload {what}.", next_step=next_step)


def whole_seconds(seconds: float) -> int:
    """Seconds for a cluster that counts whole ones, never fewer. Raises InvalidInput for what is no duration."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidInput(f"{seconds} seconds is no duration.", next_step="Give 0 or more seconds.")
    return math.ceil(seconds)
