"""Every setting: its unit, default and the reason for the default, as a frozen dataclass per section.

A value comes from the environment (`MACADAM_…`) or the default; command-line flags override fields with
`dataclasses.replace`. The reference page of settings is generated from this file.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from macadam.errors import SettingInvalid


def setting(default: object, *, env: str, unit: str, why: str, secret: bool = False) -> Any:
    """Declares one setting; `unit` and `why` go to the reference page. secret: not shown when settings are printed."""
    return dataclasses.field(default=default, metadata={"env": env, "unit": unit, "why": why}, repr=not secret)


_PRIVATE = ("MACADAM_", "PGPASS", "PGSSLKEY", "PGSERVICE")


def without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that code may see which is not the platform's own: no setting of ours, nothing that opens the database."""
    return {name: value for name, value in environment.items() if not name.startswith(_PRIVATE)}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One group of settings, read from the environment field by field."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Raises SettingInvalid if a variable's text does not fit its field's type."""
        values = {}
        for field in dataclasses.fields(cls):
            text = environment.get(field.metadata["env"])
            if text is not None:
                values[field.name] = _parse(field.metadata["env"], text, type(field.default))
        return cls(**values)


def _parse(variable: str, text: str, kind: type) -> object:
    try:
        if kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        raise SettingInvalid(
            f"{variable} is {text!r}, expected {kind.__name__}.",
            next_step=f"Unset {variable} for the default or give a value of that type.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Storage(Section):
    """Where state lives. Empty means: under the home."""

    database: str = setting(
        "", env="MACADAM_DATABASE", unit="URL", why="SQLite under the home needs no server", secret=True
    )
    objects: str = setting("", env="MACADAM_OBJECTS", unit="URL", why="a local directory needs no server")
    online: str = setting("", env="MACADAM_ONLINE", unit="URL", why="LMDB reads in microseconds and needs no server")
    runner: str = setting("subprocess", env="MACADAM_RUNNER", unit="adapter", why="one machine is enough to start with")


@dataclass(frozen=True, kw_only=True)
class Server(Section):
    """Where the control plane and the gateway listen, and what they refuse."""

    host: str = setting("127.0.0.1", env="MACADAM_HOST", unit="address", why="nothing is exposed unless asked for")
    port: int = setting(8480, env="MACADAM_PORT", unit="TCP port", why="not taken by common tools")
    gateway_port: int = setting(8481, env="MACADAM_GATEWAY_PORT", unit="TCP port", why="next to the control plane")
    gateway_name: str = setting(
        "", env="MACADAM_GATEWAY_NAME", unit="name", why="what journal segments say who wrote them; empty: host:port"
    )
    max_body: int = setting(
        32 * 1024 * 1024, env="MACADAM_MAX_BODY", unit="bytes", why="a request is held in memory, a dataset is not"
    )
    open_tiles: bool = setting(
        True, env="MACADAM_OPEN_TILES", unit="0 or 1", why="a ledger's checkpoints and hashes are there to be compared"
    )
    health_timeout: float = setting(
        15.0, env="MACADAM_HEALTH_TIMEOUT", unit="s", why="a cold disk may take several seconds to import"
    )


@dataclass(frozen=True, kw_only=True)
class Sql(Section):
    """The database: SQLite under the home, or Postgres."""

    busy_timeout: float = setting(
        20.0, env="MACADAM_SQL_BUSY", unit="s", why="a CLI call may wait for a server's group commit, not for long"
    )
    group_limit: int = setting(
        256, env="MACADAM_SQL_GROUP", unit="transactions", why="bounds the wait of the first caller of a group"
    )
    connections: int = setting(
        20, env="MACADAM_SQL_CONNECTIONS", unit="connections", why="a Postgres server's usual 100 serve four processes"
    )


@dataclass(frozen=True, kw_only=True)
class Journal(Section):
    """How prediction records reach the disk."""

    fsync_every: float = setting(
        0.020, env="MACADAM_JOURNAL_FSYNC", unit="s", why="a power cut loses at most this much; 0: before each answer"
    )
    segment_bytes: int = setting(
        64 * 1024 * 1024, env="MACADAM_JOURNAL_SEGMENT_BYTES", unit="bytes", why="a Parquet file of useful size"
    )
    segment_age: float = setting(
        30.0, env="MACADAM_JOURNAL_SEGMENT_AGE", unit="s", why="receipts are final within this time"
    )
    most_unsynced: int = setting(
        64 * 1024 * 1024, env="MACADAM_JOURNAL_UNSYNCED", unit="bytes", why="a disk that lags is not written ahead of"
    )


@dataclass(frozen=True, kw_only=True)
class Access(Section):
    """How long credentials last, and how much one caller may ask."""

    service_hours: int = setting(
        24, env="MACADAM_SERVICE_TOKEN_HOURS", unit="h", why="a leaked one is worth a day; services rotate theirs"
    )
    service_most_hours: int = setting(
        720, env="MACADAM_SERVICE_TOKEN_MOST", unit="h", why="30 days: what nobody rotates by then, nobody watches"
    )
    session_hours: int = setting(
        8, env="MACADAM_SESSION_HOURS", unit="h", why="a working day; groups are looked at anew at each sign-in"
    )
    rate: float = setting(
        200.0,
        env="MACADAM_RATE",
        unit="calls/s",
        why="per principal at the control plane: no person types faster; 0: none",
    )
    rate_burst: int = setting(
        400, env="MACADAM_RATE_BURST", unit="calls", why="a script may begin with two seconds' worth at once"
    )
    gateway_rate: float = setting(
        50_000.0,
        env="MACADAM_GATEWAY_RATE",
        unit="requests/s",
        why="per principal and gateway: above what one core answers, so it stops loops and not work; 0: none",
    )
    gateway_burst: int = setting(
        100_000, env="MACADAM_GATEWAY_BURST", unit="requests", why="two seconds' worth, as at the control plane"
    )
    anonymous_rate: float = setting(
        10.0, env="MACADAM_ANONYMOUS_RATE", unit="calls/s", why="per address, calls without a valid token; 0: no limit"
    )
    anonymous_burst: int = setting(
        50, env="MACADAM_ANONYMOUS_BURST", unit="calls", why="a service with an expired token may notice and renew it"
    )
    revocation_age: float = setting(
        0.0,
        env="MACADAM_REVOCATION_AGE",
        unit="s",
        why="0: a gateway without news serves on and shows the age; else it stops then",
    )


@dataclass(frozen=True, kw_only=True)
class Oidc(Section):
    """Sign-in through an OpenID Connect provider. Without an issuer there is none, and local tokens are all."""

    issuer: str = setting("", env="MACADAM_OIDC_ISSUER", unit="URL", why="no provider is trusted unless named")
    client_id: str = setting("", env="MACADAM_OIDC_CLIENT_ID", unit="text", why="the provider gives it out")
    client_secret_file: str = setting(
        "", env="MACADAM_OIDC_CLIENT_SECRET_FILE", unit="path", why="a public client has none, PKCE stands in for it"
    )
    claim: str = setting(
        "sub", env="MACADAM_OIDC_CLAIM", unit="claim", why="the one that providers never give to somebody else"
    )
    groups: str = setting("groups", env="MACADAM_OIDC_GROUPS", unit="claim", why="what most providers call it")
    scope: str = setting(
        "openid profile email", env="MACADAM_OIDC_SCOPE", unit="scopes", why="some providers want one more for groups"
    )
    create: bool = setting(
        False,
        env="MACADAM_OIDC_CREATE",
        unit="0 or 1",
        why="whom the provider knows is not yet whom the platform knows",
    )
    redirect: str = setting(
        "", env="MACADAM_OIDC_REDIRECT", unit="URL", why="empty: /login/callback where the control plane listens"
    )


@dataclass(frozen=True, kw_only=True)
class Keys(Section):
    """What the home's private keys are encrypted with at rest. Nothing: they are files that only their owner can read."""

    passphrase_file: str = setting(
        "", env="MACADAM_KEY_PASSPHRASE_FILE", unit="path", why="a file can be mounted for one process only"
    )
    passphrase: str = setting(
        "",
        env="MACADAM_KEY_PASSPHRASE",
        unit="text",
        why="for where no file can be; the file is preferred",
        secret=True,
    )
    kms: str = setting(
        "", env="MACADAM_KEY_KMS", unit="adapter:key", why="such as aws:alias/macadam; a passphrase needs no service"
    )

    @property
    def wanted(self) -> bool:
        return bool(self.passphrase_file or self.passphrase or self.kms)

    def secret(self) -> str:
        """The passphrase. Raises SettingInvalid, without repeating it."""
        if not self.passphrase_file:
            return self.passphrase
        try:
            return Path(self.passphrase_file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingInvalid(
                f"MACADAM_KEY_PASSPHRASE_FILE names {self.passphrase_file}, which cannot be read as text.",
                next_step="Correct the path, or let this user read it.",
            ) from error


@dataclass(frozen=True, kw_only=True)
class Ledger(Section):
    """The ledger's keys and witnesses."""

    key_overlap: int = setting(
        30,
        env="MACADAM_LEDGER_KEY_OVERLAP",
        unit="days",
        why="time for every reader to take up a new key while the old one still signs",
    )
    witnesses: str = setting(
        "", env="MACADAM_LEDGER_WITNESSES", unit="path", why="a file of lines 'key URL'; a ledger works without any"
    )
    witness_timeout: float = setting(
        5.0, env="MACADAM_LEDGER_WITNESS_TIMEOUT", unit="s", why="one that does not answer must not hold up a closing"
    )


@dataclass(frozen=True, kw_only=True)
class Link(Section):
    """How gateways on other machines reach the control plane: mutual TLS with workload identities."""

    port: int = setting(0, env="MACADAM_LINK_PORT", unit="TCP port", why="0: off; nothing is exposed unless asked for")
    host: str = setting("127.0.0.1", env="MACADAM_LINK_HOST", unit="address", why="as for the other servers")
    trust_domain: str = setting(
        "macadam.local", env="MACADAM_TRUST_DOMAIN", unit="SPIFFE trust domain", why="one platform, one domain"
    )
    svid_dir: str = setting(
        "",
        env="MACADAM_SVID_DIR",
        unit="directory",
        why="where an external SPIFFE agent keeps svid.pem, svid_key.pem and svid_bundle.pem; empty: issued here",
    )


_LEAST_GPU_HOUR = 1000
"""µ$: a tenth of a cent. What is less was meant in whole units of the currency."""


@dataclass(frozen=True, kw_only=True)
class Prices(Section):
    """What compute costs when no bill says better."""

    cpu_hour_micros: int = setting(
        48_000, env="MACADAM_PRICE_CPU_HOUR", unit="µ$ per core-hour", why="typical on-demand price of a vCPU, 2026"
    )
    pue: float = setting(
        0.0,
        env="MACADAM_PUE",
        unit="ratio",
        why="energy of the place over that of its machines; 0: not known, 1.56 (1.1 to 2.0) is taken",
    )
    grid: str = setting(
        "", env="MACADAM_GRID", unit="region", why="whose electricity it is; empty: the world's mean, with its extremes"
    )
    gpu_hour_micros: int = setting(
        0,
        env="MACADAM_PRICE_GPU_HOUR",
        unit="µ$ per GPU-hour",
        why="of GPUs that have no price of their own; 0: not known, and then no price is made up",
    )
    currency: str = setting(
        "USD",
        env="MACADAM_PRICE_CURRENCY",
        unit="ISO 4217",
        why="what these prices are in, and what work costs where its project has no budget or quota in money",
    )

    def __post_init__(self) -> None:
        """Raises SettingInvalid: what costs less than nothing would fill budgets."""
        for name, micros in (("CPU", self.cpu_hour_micros), ("GPU", self.gpu_hour_micros)):
            if micros < 0:
                raise SettingInvalid(
                    f"MACADAM_PRICE_{name}_HOUR is {micros}.", next_step="Give millionths of the currency, or unset it."
                )
        if 0 < self.gpu_hour_micros < _LEAST_GPU_HOUR:  # a hard budget would never be reached
            raise SettingInvalid(
                f"MACADAM_PRICE_GPU_HOUR is {self.gpu_hour_micros}, which is {self.gpu_hour_micros / 1e6:f} {self.currency}.",
                next_step=f"Give millionths: {self.gpu_hour_micros * 1_000_000} for {self.gpu_hour_micros}.00 {self.currency}.",
            )
        if not re.fullmatch(r"[A-Z]{3}", self.currency):
            raise SettingInvalid(
                f"MACADAM_PRICE_CURRENCY is {self.currency!r}.", next_step="Give an ISO 4217 code such as EUR."
            )


@dataclass(frozen=True, kw_only=True)
class Jobs(Section):
    """The queue of jobs, and the machines that it puts them on."""

    executor: str = setting(
        "local", env="MACADAM_EXECUTOR", unit="adapter", why="processes on this machine need nothing installed"
    )
    gpus: str = setting(
        "",
        env="MACADAM_GPUS",
        unit="N[xMODEL]",
        why="empty: those that NVML finds here; a number declares virtual ones, for tests and studies",
    )
    machines: str = setting(
        "",
        env="MACADAM_MACHINES",
        unit="NAME=N[xMODEL][@ZONE][:spot],…",
        why="empty: this machine as it is; else virtual ones in its place, to try zones and spot",
    )
    every: float = setting(
        0.5,
        env="MACADAM_JOBS_EVERY",
        unit="s",
        why="how late the end of a job is seen; a look costs a few milliseconds",
    )
    restart_delay: float = setting(
        1.0,
        env="MACADAM_JOBS_RESTART_DELAY",
        unit="s",
        why="before the first restart, doubled for each one, at most 300 s",
    )
    keep: float = setting(
        7.0,
        env="MACADAM_JOBS_KEEP",
        unit="days",
        why="logs and checkpoints of a job that ended: a week to look at them",
    )
    order: str = setting(
        "gittins",
        env="MACADAM_JOBS_ORDER",
        unit="fifo … gittins",
        why="short jobs wait least, whatever is known of them",
    )
    preempt: str = setting(
        "order",
        env="MACADAM_JOBS_PREEMPT",
        unit="never | lower-priority | order",
        why="only what says it may be is stopped",
    )
    reclaim: str = setting(
        "due",
        env="MACADAM_JOBS_RECLAIM",
        unit="never | due | lower-priority | any",
        why="what was lent comes back when its owner's own share would have started the job, and not sooner",
    )
    spot: str = setting(
        "expected-cost",
        env="MACADAM_JOBS_SPOT",
        unit="expected-cost … on-demand",
        why="how work with a deadline chooses between spot and on demand; whatever it says, the deadline is kept",
    )
    changeover: float = setting(
        300.0,
        env="MACADAM_JOBS_CHANGEOVER",
        unit="s",
        why="from a start on another machine until the job goes on there, at most: too short a one makes jobs late",
    )
    spot_step: float = setting(
        60.0,
        env="MACADAM_JOBS_SPOT_STEP",
        unit="s",
        why="so long the queue may be away without a deadline being missed; wishes are made anew as often",
    )


@dataclass(frozen=True, kw_only=True)
class Machine(Section):
    """The machine that jobs run on where they run here: where it was bought and as what. Clusters say that of their own machines."""

    provider: str = setting(
        "",
        env="MACADAM_MACHINE_PROVIDER",
        unit="aws | gcp | azure | …",
        why="empty: not known; only the cloud that is named here is asked whether it takes the machine away",
    )
    region: str = setting("", env="MACADAM_MACHINE_REGION", unit="region", why="as its provider names it, for prices")
    zone: str = setting("", env="MACADAM_MACHINE_ZONE", unit="zone", why="as its provider names it")
    type: str = setting(
        "", env="MACADAM_MACHINE_TYPE", unit="machine type", why="as its provider names it, such as p5.48xlarge"
    )
    spot: str = setting(
        "",
        env="MACADAM_MACHINE_SPOT",
        unit="0 or 1",
        why="whether it may be taken away; empty: not known, as good as no",
    )
    metadata: str = setting(
        "",
        env="MACADAM_MACHINE_METADATA",
        unit="URL",
        why="empty: the link-local address at which AWS, GCP and Azure announce that they take a machine away",
    )


@dataclass(frozen=True, kw_only=True)
class Telemetry(Section):
    """What is collected of GPUs and hosts, and how long it is kept."""

    local: bool = setting(
        True, env="MACADAM_TELEMETRY_LOCAL", unit="0 or 1", why="NVML is read where there is a driver; else nothing is"
    )
    hosts: bool = setting(
        False, env="MACADAM_TELEMETRY_HOSTS", unit="0 or 1", why="a machine's processes are looked at only where asked"
    )
    exporters: str = setting(
        "", env="MACADAM_TELEMETRY_EXPORTERS", unit="URLs", why="dcgm-exporters to scrape, separated by commas"
    )
    every: float = setting(
        15.0,
        env="MACADAM_TELEMETRY_EVERY",
        unit="s",
        why="what Prometheus is usually set to: bursts show, cost is small",
    )
    timeout: float = setting(
        5.0, env="MACADAM_TELEMETRY_TIMEOUT", unit="s", why="an exporter that hangs must not hold up the others"
    )
    grace: float = setting(
        300.0, env="MACADAM_TELEMETRY_GRACE", unit="s", why="samples of an hour that are still under way when it ends"
    )
    raw_hours: int = setting(
        48,
        env="MACADAM_TELEMETRY_RAW_HOURS",
        unit="h",
        why="late samples are merged for two days; then minutes are enough",
    )
    minute_days: int = setting(
        35, env="MACADAM_TELEMETRY_MINUTE_DAYS", unit="days", why="a month's bill can be looked at by the minute"
    )
    hour_days: int = setting(
        800, env="MACADAM_TELEMETRY_HOUR_DAYS", unit="days", why="a year is compared with the year before"
    )


@dataclass(frozen=True, kw_only=True)
class Clusters(Section):
    """Clusters that carry jobs out instead of this machine: MACADAM_EXECUTOR=kubernetes or ray."""

    kubernetes_config: str = setting(
        "",
        env="MACADAM_KUBERNETES_CONFIG",
        unit="file",
        why="a kubeconfig; empty: the service account of the pod that Macadam runs in",
    )
    kubernetes_context: str = setting(
        "", env="MACADAM_KUBERNETES_CONTEXT", unit="name", why="empty: the kubeconfig's current one"
    )
    kubernetes_namespace: str = setting(
        "macadam",
        env="MACADAM_KUBERNETES_NAMESPACE",
        unit="name",
        why="one role in one namespace is all that is needed",
    )
    kubernetes_image: str = setting(
        "", env="MACADAM_KUBERNETES_IMAGE", unit="image", why="of jobs that name none; empty: they are refused"
    )
    kubernetes_storage: str = setting(
        "", env="MACADAM_KUBERNETES_STORAGE", unit="storage class", why="of checkpoints; empty: the cluster's default"
    )
    kubernetes_checkpoint: int = setting(
        10, env="MACADAM_KUBERNETES_CHECKPOINT", unit="GiB", why="a volume for each job that keeps checkpoints"
    )
    ray_address: str = setting(
        "http://127.0.0.1:8265",
        env="MACADAM_RAY_ADDRESS",
        unit="URL",
        why="where Ray's dashboard listens by itself; over a network put TLS before it",
    )
    ray_token: str = setting(
        "", env="MACADAM_RAY_TOKEN", unit="token", why="for a cluster that asks for one", secret=True
    )
    ray_checkpoints: str = setting(
        "",
        env="MACADAM_RAY_CHECKPOINTS",
        unit="directory",
        why="one that all nodes see; empty: jobs with checkpoints are refused",
    )
    ray_prefix: str = setting(
        "macadam-",
        env="MACADAM_RAY_PREFIX",
        unit="text",
        why="of submission ids: another one for each home on a cluster",
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections and the home directory that embedded state lives under."""

    home: Path
    storage: Storage = dataclasses.field(default_factory=Storage)
    server: Server = dataclasses.field(default_factory=Server)
    sql: Sql = dataclasses.field(default_factory=Sql)
    journal: Journal = dataclasses.field(default_factory=Journal)
    access: Access = dataclasses.field(default_factory=Access)
    oidc: Oidc = dataclasses.field(default_factory=Oidc)
    keys: Keys = dataclasses.field(default_factory=Keys)
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    link: Link = dataclasses.field(default_factory=Link)
    prices: Prices = dataclasses.field(default_factory=Prices)
    jobs: Jobs = dataclasses.field(default_factory=Jobs)
    machine: Machine = dataclasses.field(default_factory=Machine)
    clusters: Clusters = dataclasses.field(default_factory=Clusters)
    telemetry: Telemetry = dataclasses.field(default_factory=Telemetry)

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> "Settings":
        """Reads the environment. home: overrides MACADAM_HOME, whose default is `.macadam` here.

        Raises SettingInvalid.
        """
        env = os.environ if environment is None else environment
        place = home or Path(env.get("MACADAM_HOME", ".macadam"))
        return cls(
            home=place.absolute(),
            storage=Storage.read(env),
            server=Server.read(env),
            sql=Sql.read(env),
            journal=Journal.read(env),
            access=Access.read(env),
            oidc=Oidc.read(env),
            keys=Keys.read(env),
            ledger=Ledger.read(env),
            link=Link.read(env),
            prices=Prices.read(env),
            jobs=Jobs.read(env),
            machine=Machine.read(env),
            clusters=Clusters.read(env),
            telemetry=Telemetry.read(env),
        )
