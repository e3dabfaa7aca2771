"""What was seen of devices, in the shape that everything above reads: one row per device, interval and owner.

Collectors make it, the series store keeps it, the waterfall and the advice read it.
"""

from typing import TYPE_CHECKING, Any

from macadam.lazy import lazy

if TYPE_CHECKING:
    import pyarrow as pa
else:
    pa = lazy("pyarrow")


def usage_schema() -> "pa.Schema":
    """One row: one device, one interval, one owner. Null means that it was not measured, never zero.

    - device: 'gpu:<uuid>', 'gpu:<uuid>/mig:<id>' for a slice, 'host:<name>'; node: the machine's name; model: the
      catalogue's name of the GPU, '' if unknown
    - start: UTC; seconds: how much of the interval samples cover
    - project, owner: who had it ('job:…', 'run:…', 'endpoint:…', 'model:…@3'); '' if nobody
    - share: part of the device that the owner had, 0 to 1
    - gpu_active: part of the time in which any kernel ran (what is called utilisation); sm_active, tensor_active,
      dram_active: mean ratios 0 to 1; host_cpu: cores in use
    - memory_bytes: the most seen; energy_joules: spent in the interval
    - suspect: '' or the reason for which a trust check does not believe the row: nothing is charged on it
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
    ]
    return pa.schema(fields)
