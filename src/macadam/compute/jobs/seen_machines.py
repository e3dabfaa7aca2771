"""What is said in the ledger of machines that came, went or changed, in pieces that each fit into a leaf. Pure."""

from collections.abc import Iterator, Sequence

from macadam.ports import Node

_IN_ONE = 40
"""Machines in one leaf: a name has up to 253 characters, its labels up to 63 each; a leaf holds 64 KiB."""


def changes(before: Sequence[Node], now: Sequence[Node]) -> Iterator[dict[str, object]]:
    """Each piece: machines that came or changed, by name, and the names of those that are gone; at least one piece."""
    known, names = {node.name: _facts(node) for node in before}, {node.name for node in now}
    new = [(node.name, facts) for node in now if known.get(node.name) != (facts := _facts(node))]
    gone = sorted(known.keys() - names)
    for at in range(0, max(len(new), len(gone), 1), _IN_ONE):
        yield {"there": len(names), "machines": dict(new[at : at + _IN_ONE]), "gone": gone[at : at + _IN_ONE]}


def _facts(node: Node) -> dict[str, object]:
    return {
        "gpus": len(node.devices),
        "virtual": sum(device.virtual for device in node.devices),
        "cpu_milli": node.cpus,
        "memory": node.memory,
        "leaving": node.leaving,
        "closed": node.closed,
        "provider": node.provider,
        "region": node.region,
        "zone": node.zone,
        "machine": node.machine,
        "spot": node.spot,
    }
