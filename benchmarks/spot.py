"""What a 48-hour job with a deadline saves on spot machines, beside the uniform-progress policy, and that it is never late.

    python -m benchmarks spot      (needs the traces in ../shared/data/spot; some 3 minutes)

Peer: Uniform Progress (Wu et al., NSDI 2024), whose traces these are; changeover 0.2 h, spot at 0.33 of the on-demand price as there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Figure, machine, show
from macadam.compute.scheduling.spot import Job, Policy
from macadam.compute.simulation import spot

FOLDER = Path("../shared/data/spot")
NAMES = ("us-west-2a_v100_1", "us-west-2b_v100_1", "us-west-2c_v100_1")
WORK = 48 * 3600.0
DEADLINES = (1.1, 1.2, 1.25, 1.5, 1.75, 2.0)
STARTS = 100


def run(starts: int = STARTS) -> list[Figure]:
    if not FOLDER.exists():
        return [Figure(name="not run", value=0, unit="", note=f"the traces are not in {FOLDER}")]
    zones = [spot.read_zone(FOLDER / f"{name}.json") for name in NAMES]
    cases = [("three zones", zones), *((f"zone {zone.name[9]}", [zone]) for zone in zones)]
    return [figure for name, some in cases for figure in _case(name, some, starts)]


def _case(name: str, zones: Sequence[spot.Zone], starts: int) -> list[Figure]:
    policies = (Policy(name="uniform-progress"), Policy(name="expected-cost"))
    job = Job(work=WORK, deadline=2 * WORK, step=zones[0].gap)
    found = spot.study(zones, policies, [WORK * times for times in DEADLINES], job=job, starts=starts)
    figures = [
        Figure(
            name=f"{name}: late",
            value=sum(one.missed for one in found),
            unit="jobs",
            at_most=0,
            note=f"of {starts * len(found)}",
        )
    ]
    for peer, ours in zip(found[::2], found[1::2], strict=True):
        least = 100 * peer.savings
        figures.append(
            Figure(
                name=f"{name}, {ours.deadline / WORK:.2f} times the work: savings",
                value=100 * ours.savings,
                unit="%",
                at_least=least,
                note=f"uniform progress {least:.1f}%, ratio {ours.savings / peer.savings:.3f}",
            )
        )
    return figures


if __name__ == "__main__":
    sys.stdout.write(machine() + "\n")
    show("spot", run(int(sys.argv[1]) if len(sys.argv) > 1 else STARTS), 0)
