"""Which segments can hold an id: each stands under a few hexadecimal prefixes that together are exactly its ids' times.

A UUIDv7 begins with its time; its first eight digits change every 65.536 s. The time between a segment's first and last id
is covered by the fewest aligned prefixes of one to eight digits, as a range is in a trie: one or two for a segment of half
a minute, some hundred at most for one of years. An id lies in a segment only if one of its own eight prefixes is there.
"""

DIGITS = 8
_BASE = 16


def cover(first: str, last: str) -> list[str]:
    """The prefixes of a segment whose ids lie between two ids; none for one without records."""
    if not first:
        return []
    low, high = int(first[:DIGITS], _BASE), int(last[:DIGITS], _BASE)
    found = []
    while low <= high:
        width = 0  # digits that the prefix leaves open
        while width < DIGITS - 1 and low % _BASE ** (width + 1) == 0 and low + _BASE ** (width + 1) - 1 <= high:
            width += 1
        found.append(f"{low // _BASE**width:0{DIGITS - width}x}")
        low += _BASE**width
    return found


def prefixes(identity: str) -> list[str]:
    """Under which of them a segment with this id can stand."""
    head = identity[:DIGITS].lower()
    return [head[:length] for length in range(1, len(head) + 1)]
