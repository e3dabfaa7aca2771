"""What was seen of devices, in the shapes that the room and everything above it speak in.

Collectors make samples: one reading of one device at one instant. Folding them by owner and interval makes usage, which
the series store keeps and the waterfall and the advice read.
"""

import math
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")

Text = Annotated[str, msgspec.Meta(max_length=253)]
"""A label's value: Kubernetes names have at most 253 characters."""

Named = Annotated[str, msgspec.Meta(max_length=253, pattern=r"^(gpu|host):[^\x00-\x1f\x7f]+\Z")]
"""A device's name. Checks and sums go by what it begins with."""
Aware = Annotated[datetime, msgspec.Meta(tz=True)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What a column of 64 bits holds: a number from elsewhere may be any."""
UNFIT = "unfit-delivery"
"""The one finding that is about a file and not about what it says: sealing sets such a delivery aside."""
GPU = "gpu:"
HOST = "host:"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """That processes of an owner were on the device. memory: bytes that they had, None if nobody said."""

    project: Text
    owner: Text
    memory: Whole | None = None


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a device. memory: bytes, None where the driver does not say (as under some containers)."""

    pid: Whole
    memory: Whole | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one device. None means that it was not measured, never zero.

    - device: 'gpu:<uuid>', 'gpu:<uuid>/mig:<id>', 'host:<name>'; node: the machine; product: what the driver calls it
    - at: the instant that the source gives, UTC; received: when it was read live, None for history that is imported
    - source: 'nvml', 'dcgm', 'prometheus' or 'host'
    - part: tells several rows of one device and instant apart: 'namespace/pod/container', or a host's owner
    - gpu_active: part of the last sample period in which any kernel ran; gr_active: the same as DCGM's profiling
      (GR_ENGINE_ACTIVE) has it; sm_active, sm_occupancy, tensor_active, dram_active: ratios 0 to 1
    - memory_used, memory_total: bytes; power, power_limit: W; energy: mJ since the driver was loaded
    - sm_clock, memory_clock: MHz; throttle: NVML's bits of clocks-event reasons; temperature: °C; xid: the last error
    - host_cpu: cores in use; host_cores: cores that the machine has
    - pod, namespace, container: None if the source names no pods at all, '' if it does and none was here
    - claims: whose processes were there; None if processes were not looked at
    - error: why the device could not be read, such as 'gpu is lost'
    - profile: of a MIG slice, such as '1g.10gb'; gpu_power (W), gpu_energy (mJ): of the whole device that a slice is part of
    - nvlink, pcie: bytes/s, what went out and what came in together, mean of the last sample period
    """

    device: Named
    at: Aware
    received: Aware | None = None
    node: Text = ""
    product: Text = ""
    source: Text = "nvml"
    part: Annotated[str, msgspec.Meta(max_length=800)] = ""
    gpu_active: float | None = None
    gr_active: float | None = None
    sm_active: float | None = None
    sm_occupancy: float | None = None
    tensor_active: float | None = None
    dram_active: float | None = None
    memory_used: Whole | None = None
    memory_total: Whole | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: Whole | None = None
    sm_clock: float | None = None
    memory_clock: float | None = None
    throttle: Whole | None = None
    temperature: float | None = None
    xid: Whole | None = None
    host_cpu: float | None = None
    pod: Text | None = None
    namespace: Text | None = None
    container: Text | None = None
    claims: tuple[Claim, ...] | None = None
    processes: tuple[Process, ...] | None = None
    error: Text = ""
    profile: Text | None = None
    gpu_power: float | None = None
    gpu_energy: Whole | None = None
    nvlink: float | None = None
    pcie: float | None = None
    host_cores: float | None = None


def as_json(sample: Sample) -> Sample:
    """The same for JSON, which has no NaN and would say null for it: a value that is no number is left out, and the error says
    so, as it is not one that was not measured.
    """
    broken = {
        name: value
        for name in Sample.__struct_fields__
        if isinstance(value := getattr(sample, name), float) and not math.isfinite(value)
    }
    if not broken:
        return sample
    said = ", ".join(f"{name} is {value}" for name, value in broken.items())
    error = f"{sample.error}; {said}" if sample.error else said
    return msgspec.structs.replace(sample, error=error[:253], **dict.fromkeys(broken))


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a Kubernetes pod is: filled from its labels by whoever watches the cluster. owner: 'job:…', 'endpoint:…'."""

    namespace: str
    name: str
    project: str
    owner: str


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """That a device, or part of it, was assigned to an owner. end: excluded, None while it lasts. share: 0 to 1."""

    device: str
    project: str
    owner: str
    start: datetime
    end: datetime | None = None
    share: float = 1.0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a trust check says about one device. count: of samples; first, last: their instants, UTC; evidence: one of
    them in words; threshold: what was compared with; suspect: whether its rows are not to be charged on.
    """

    check: str
    device: str
    node: str
    count: int
    first: datetime
    last: datetime
    evidence: str
    threshold: str
    suspect: bool


def sample_schema() -> "pa.Schema":
    """Samples as a table: the fields of `Sample`, in its order. Ratios and gauges as 32 bits: no sensor has more."""
    text, ratio, whole = pa.string(), pa.float32(), pa.int64()
    instant = pa.timestamp("us", tz="UTC")
    claim = pa.struct([pa.field("project", text), pa.field("owner", text), pa.field("memory", whole)])
    process = pa.struct([pa.field("pid", whole), pa.field("memory", whole)])
    kinds: dict[str, Any] = {
        "device": text,
        "at": instant,
        "received": instant,
        "node": text,
        "product": text,
        "source": text,
        "part": text,
        **dict.fromkeys(RATIOS, ratio),
        "memory_used": whole,
        "memory_total": whole,
        "power": ratio,
        "power_limit": ratio,
        "energy": whole,
        "sm_clock": ratio,
        "memory_clock": ratio,
        "throttle": whole,
        "temperature": ratio,
        "xid": whole,
        "host_cpu": ratio,
        "pod": text,
        "namespace": text,
        "container": text,
        "claims": pa.list_(claim),
        "processes": pa.list_(process),
        "error": text,
        "profile": text,
        "gpu_power": ratio,
        "gpu_energy": whole,
        "nvlink": ratio,
        "pcie": ratio,
        "host_cores": ratio,
    }
    return pa.schema([pa.field(name, kinds[name]) for name in Sample.__struct_fields__])


RATIOS = ("gpu_active", "gr_active", "sm_active", "sm_occupancy", "tensor_active", "dram_active")


def usage_schema() -> "pa.Schema":
    """One row: one device, one interval, one owner. Null means that it was not measured, never zero.

    - device: 'gpu:<uuid>', 'gpu:<uuid>/mig:<id>' for a slice, 'host:<name>'; node: the machine's name; model: the
      catalogue's name of the GPU, '' if unknown
    - start: UTC; seconds: how much of the interval samples cover
    - project, owner: who had it ('job:…', 'run:…', 'endpoint:…', 'model:…@3'); '' if nobody
    - share: part of the device that the owner had, 0 to 1
    - slice: part of the whole GPU that a MIG slice takes, by `mig.part`; 1 for a whole device, null if it is not known
    - gpu_active: part of the time in which any kernel ran (what is called utilisation); sm_active, tensor_active,
      dram_active: mean ratios 0 to 1; host_cpu: cores in use
    - memory_bytes: the most seen; energy_joules: spent in the interval; of a MIG slice what is attributed to it, as it has
      no counter: see `mig`
    - throttled_heat, throttled_hardware, throttled_power, throttled_sync: parts of the time in which clocks were held down,
      each moment by its gravest reason: heat, the board's protection (power brake, fast trigger), the power limit, or to
      keep in step with other devices. They sum to at most 1
    - nvlink, pcie: mean bytes/s over the device's links, both directions together; host_cores: that the machine has
    - suspect: '' or the reason for which a trust check does not believe the row: nothing is charged on it. Where only a
      part of the interval is suspect, it is a row of its own, with its own seconds
    """
    number = pa.float64()
    fields: list[pa.Field[Any]] = [
        pa.field("device", pa.string()),
        pa.field("node", pa.string()),
        pa.field("model", pa.string()),
        pa.field("start", pa.timestamp("us", tz="UTC")),
        pa.field("seconds", number),
        pa.field("project", pa.string()),
        pa.field("owner", pa.string()),
        pa.field("share", number),
        pa.field("gpu_active", number),
        pa.field("sm_active", number),
        pa.field("tensor_active", number),
        pa.field("dram_active", number),
        pa.field("host_cpu", number),
        pa.field("memory_bytes", pa.int64()),
        pa.field("energy_joules", number),
        pa.field("suspect", pa.string()),
        pa.field("slice", pa.float32()),
        *(pa.field(name, pa.float32()) for name in (*THROTTLED, *RATES, "host_cores")),
    ]
    return pa.schema(fields)


THROTTLED = ("throttled_heat", "throttled_hardware", "throttled_power", "throttled_sync")
RATES = ("nvlink", "pcie")
_LATER = frozenset(
    {"profile", "gpu_power", "gpu_energy", "slice", "host_cores", *THROTTLED, *RATES},
)
"""Columns that older files lack. What was not measured then is null."""


def brought_up(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """A table that was written before columns were added, with them. What lacks other columns is left as it is."""
    missing = [name for name in schema.names if name not in table.column_names]
    if not missing or not _LATER.issuperset(missing):
        return table
    for name in missing:
        table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names)


def to_table(samples: "list[Sample] | tuple[Sample, ...]") -> "pa.Table":
    """Samples as a table of `sample_schema`."""
    schema = sample_schema()
    columns = {
        name: [getattr(sample, name) for sample in samples]
        for name in Sample.__struct_fields__
        if name not in ("claims", "processes")
    }
    for name in ("claims", "processes"):
        columns[name] = [msgspec.to_builtins(getattr(sample, name)) for sample in samples]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def from_table(table: "pa.Table") -> list[Sample]:
    """The inverse of `to_table`; NaN stays NaN."""
    return [msgspec.convert(row, Sample) for row in table.to_pylist()]
