"""Which MIG slices fit on which GPU: NVIDIA's placement rules, as bit masks over a device's memory slots.

A device has 8 memory slots (A30: 4). Each profile takes a run of them and may begin only at some; two slices fit together if their
runs do not overlap. The number of compute slices then holds by itself. From: `nvidia-smi mig -lgipp` and the supported
profiles in NVIDIA's MIG User Guide (docs.nvidia.com/datacenter/tesla/mig-user-guide, read 2026-11-21). Profiles with media
extensions (+me) are left out.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

import msgspec

from macadam.errors import InvalidInput


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of slice. compute: seventh parts of the device's multiprocessors (A30: quarters). starts: the memory slots at
    which it may begin, size: how many it takes.
    """

    name: str
    compute: int
    starts: tuple[int, ...]
    size: int

    def mask(self, start: int) -> int:
        """The slots that it takes when it begins at start, as bits."""
        return ((1 << self.size) - 1) << start

    def free_starts(self, used: int) -> tuple[int, ...]:
        """Where it still fits on a device whose slots `used` are taken."""
        return tuple(start for start in self.starts if not used & self.mask(start))

    def room(self, used: int) -> int:
        """How many of it still fit there at once."""
        count = 0
        for start in self.starts:
            if not used & self.mask(start):
                used, count = used | self.mask(start), count + 1
        return count


# compute slices → (where it may begin, memory slots). Two profiles have one compute slice: the second takes two slots.
_EIGHTHS = (
    (1, (0, 1, 2, 3, 4, 5, 6), 1),
    (1, (0, 2, 4, 6), 2),
    (2, (0, 2, 4), 2),
    (3, (0, 4), 4),
    (4, (0,), 4),
    (7, (0,), 8),
)
_QUARTERS = ((1, (0, 1, 2, 3), 1), (2, (0, 2), 2), (4, (0,), 4))
# The text that a model's name has to have → the memory that the profiles of each row above are named after.
_MEMORY: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"a100.*40gb", (5, 10, 10, 20, 20, 40)),
    (r"(a100|h100).*80gb", (10, 20, 20, 40, 40, 80)),
    (r"h100.*94gb", (12, 24, 24, 47, 47, 94)),
    (r"h200.*141gb", (18, 35, 35, 71, 71, 141)),
    (r"a30(\D.*24gb)?", (6, 12, 24)),
)


@cache
def profiles(model: str) -> Mapping[str, Profile]:
    """The slices that a GPU can be split into, by name. model: as in the catalogue, such as 'h100-sxm-80gb'.

    Raises InvalidInput if its slices are not known.
    """
    for pattern, memory in _MEMORY:
        if re.fullmatch(rf"(nvidia[- ])?{pattern}", model.lower()):
            shapes = _QUARTERS if len(memory) == len(_QUARTERS) else _EIGHTHS
            found = [
                Profile(name=f"{compute}g.{gb}gb", compute=compute, starts=starts, size=size)
                for (compute, starts, size), gb in zip(shapes, memory, strict=True)
            ]
            return {profile.name: profile for profile in found}
    raise InvalidInput(
        f"It is not known how a {model or 'GPU without a model'} splits into MIG slices.",
        next_step="Leave its devices whole, or name the model with its memory, such as h100-sxm-80gb.",
    )


def slots(model: str) -> int:
    """How many memory slots a device has."""
    return max(profile.size for profile in profiles(model).values())


def share(model: str, profile: str) -> Fraction | None:
    """What a slice takes of its device's memory, which is what is paid for it. None if that is not known."""
    try:
        found = profiles(model).get(profile)
        return Fraction(found.size, slots(model)) if found else None
    except InvalidInput:
        return None


def choices(profile: Profile, known: Mapping[str, Profile], used: int) -> list[tuple[int, int]]:
    """Where a slice fits on one device, best first: (slices of any kind that could begin no more, start).

    Fewer lost beginnings leave the device useful for more kinds of slices, which is fragmentation counted as FGD counts it
    (see `fragmentation`), with every kind as likely.
    """
    before = _open(known, used)
    options = [(before - _open(known, used | profile.mask(start)), start) for start in profile.free_starts(used)]
    # The higher start wins a tie: low slots are the only ones where the large profiles may begin.
    return sorted(options, key=lambda option: (option[0], -option[1]))


def _open(known: Mapping[str, Profile], used: int) -> int:
    return sum(len(profile.free_starts(used)) * profile.size for profile in known.values())
