"""The plainest placement: the first machines, in their given order, with GPUs enough. Exact for a pool; packing is elsewhere."""

from collections.abc import Iterable, Sequence

from macadam.compute.scheduling.types import WHOLE, Node, Placement, Slot, Work
from macadam.errors import InvalidInput


class FirstFit:
    """The free GPUs of some nodes, as `Places` asks for them. A share goes to the fullest GPU that has room for it."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = {node.name: _Machine(node) for node in nodes}
        self._free = sum(machine.free for machine in self._nodes.values())

    def free(self) -> int:
        return self._free

    def place(self, work: Work) -> Placement | None:
        for markets in work.tries:
            fitting = [machine for machine in self._nodes.values() if _will_do(machine.node, work, markets)]
            slots = self._share(work, fitting) if work.milli else self._gang(work, fitting)
            if slots is not None:
                self.take(work, slots)
                return slots
        return None

    def take(self, work: Work, placement: Placement) -> None:
        for slot in placement:
            self._change(work, slot, -1)

    def release(self, work: Work, placement: Placement) -> None:
        for slot in placement:
            self._change(work, slot, 1)

    def _change(self, work: Work, slot: Slot, sign: int) -> None:
        if slot.node not in self._nodes:
            raise InvalidInput(f"There is no machine {slot.node!r}.", next_step="Release what runs on lost machines.")
        self._nodes[slot.node].change(work, slot, sign)
        self._free += sign * slot.milli

    def _share(self, work: Work, machines: Sequence["_Machine"]) -> Placement | None:
        for machine in machines:
            device = machine.fullest(work.milli) if machine.room(work, work.demand) else None
            if device is not None:
                return (Slot(node=machine.node.name, milli=work.milli, devices=(device,)),)
        return None

    def _gang(self, work: Work, machines: Sequence["_Machine"]) -> Placement | None:
        each = work.gpus // work.nodes if work.nodes else 0
        slots: list[Slot] = []
        missing = work.gpus
        for machine in machines:
            whole = machine.whole()
            count = (each if len(whole) >= each else 0) if each else min(missing, len(whole))
            if count and machine.room(work, count * WHOLE):
                slots.append(Slot(node=machine.node.name, milli=count * WHOLE, devices=tuple(whole[:count])))
                missing -= count
            if not missing:
                return tuple(slots)
        return None


def _will_do(node: Node, work: Work, markets: tuple[str, ...]) -> bool:
    return (not work.models or node.model in work.models) and (not markets or node.market in markets)


class _Machine:
    """One node while it fills. left: thousandths free of each device."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.left = [WHOLE] * node.gpus
        self.free = node.gpus * WHOLE
        self.cpu, self.memory = node.cpu_milli, node.memory

    def whole(self) -> list[int]:
        return [device for device, left in enumerate(self.left) if left == WHOLE]

    def fullest(self, milli: int) -> int | None:
        fitting = [(left, device) for device, left in enumerate(self.left) if left >= milli]
        return min(fitting)[1] if fitting else None

    def room(self, work: Work, milli: int) -> bool:
        """Whether processors and memory suffice for `milli` of the work's GPUs; it needs them in proportion."""
        return (not self.node.cpu_milli or self.cpu * work.demand >= work.cpu_milli * milli) and (
            not self.node.memory or self.memory * work.demand >= work.memory * milli
        )

    def change(self, work: Work, slot: Slot, sign: int) -> None:
        each = slot.milli // len(slot.devices)
        for device in slot.devices:
            if device >= len(self.left) or not 0 <= self.left[device] + sign * each <= WHOLE:
                raise InvalidInput(
                    f"GPU {device} of {self.node.name!r} cannot give {each} thousandths to {work.id!r}.",
                    next_step="Build the state anew from what runs.",
                )
            self.left[device] += sign * each
        self.free += sign * slot.milli
        # Rounded up, so that many small parts never add up to more than there is.
        self.cpu += sign * -(-work.cpu_milli * slot.milli // work.demand)
        self.memory += sign * -(-work.memory * slot.milli // work.demand)
