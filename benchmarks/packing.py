"""GPUs of a real cluster that stay unallocated, policy by policy, beside what FGD's authors publish, and how fast it is decided.

    python -m benchmarks packing      (needs Alibaba's trace in ../shared/data/gpu; all policies, 10 orders of arrival: some 2 minutes)

Published: Weng et al., USENIX ATC 2023, figure 9 (a), default trace at 100% of 6,212 GPUs, mean of 10 seeds. The policies of
theirs have to come within 10% of it, ours has to leave no more than their best.
"""

import sys
from pathlib import Path
from typing import get_args

from benchmarks.report import Figure, machine, show
from macadam.compute.scheduling.placement import Name
from macadam.compute.simulation import packing

FOLDER = Path("../shared/data/gpu")
SEEDS = 10
PUBLISHED = {"random": 851, "best-fit": 443, "packing": 511, "gradient": 296}
LONGEST = 600  # seconds for the whole sweep, on 2 cores


def run(seeds: int = SEEDS) -> list[Figure]:
    if not FOLDER.exists():
        return [Figure(name="not run", value=0, unit="", note=f"the trace is not in {FOLDER}")]
    machines = packing.read_nodes(FOLDER / "openb_node_list_gpu_node.csv")
    pods = packing.read_pods(FOLDER / "openb_pod_list_default.csv")
    found = packing.study(machines, pods, get_args(Name), seeds=seeds, capability=packing.capability(machines))
    figures = []
    for one in found.summaries:
        published = PUBLISHED.get(one.policy)
        note = f"± {one.deviation:.1f} between {seeds} seeds"
        if published:
            note += f"; published {published}, ratio {one.unallocated / published:.3f}"
        bound = published * 1.1 if published else PUBLISHED["gradient"] if one.policy == "balanced" else None
        figures.append(
            Figure(name=f"{one.policy}: unallocated", value=one.unallocated, unit="GPUs", at_most=bound, note=note)
        )
    seconds = sum(one.seconds for one in found.summaries)
    figures.append(Figure(name="the sweep", value=seconds, unit="s", at_most=LONGEST))
    placed = {
        one.policy: sum(o.placed + o.dropped for o in found.outcomes if o.policy == one.policy)
        for one in found.summaries
    }
    figures.extend(
        Figure(name=f"{one.policy}: decisions", value=placed[one.policy] / one.seconds, unit="/s")
        for one in found.summaries
    )
    return figures


if __name__ == "__main__":
    sys.stdout.write(machine() + "\n")
    show("packing", run(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS), 0)
