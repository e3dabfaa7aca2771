"""Whether there is a record for each answer: what two counts, made in two places, say about each other, segment by segment.

Pure: a function of what seal leaves say, and of which segments still wait for their seal. Reading those is the caller's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from macadam.journal.gaps import Gap


class SealedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What a seal's leaf says. records, answers: None if it does not say; gaps: id → answers without a record, and when."""

    segment: str
    gateway: str
    records: int | None
    answers: int | None
    torn: int
    follows: str
    gaps: dict[str, tuple[int, str, str]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One segment. missing: answers that the gateway counted and the segment has no record of; unanswered: records whose
    answer never left (the client or the gateway was gone); unrecorded: answers given without a record, which its header
    tells; torn: bytes of an unfinished record that recovery dropped; fault: '' if nothing is missing.
    """

    segment: str
    gateway: str
    records: int
    answers: int
    missing: int
    unanswered: int
    unrecorded: int
    torn: int
    fault: str


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """All segments of a project. answers: given, those without a record included; faults: in sentences, one each."""

    rows: tuple[Row, ...]
    faults: tuple[str, ...]

    @property
    def records(self) -> int:
        return sum(row.records for row in self.rows)

    @property
    def answers(self) -> int:
        return sum(row.answers + row.unrecorded for row in self.rows)

    @property
    def unanswered(self) -> int:
        return sum(row.unanswered for row in self.rows)

    @property
    def torn(self) -> int:
        return sum(row.torn > 0 for row in self.rows)


def of_leaf(subject: str, body: Mapping[str, object]) -> SealedCounts:
    """Reads a seal's leaf, whatever it says."""
    try:
        told = msgspec.convert(body.get("gaps", []), list[Gap])
    except msgspec.ValidationError:
        # Not none: what cannot be read may be any number of answers, and the row then is a fault.
        told = [Gap(id="?", first_at="?", last_at="?", causes={})]
    gaps = {gap.id: (gap.answers, gap.first_at, gap.last_at) for gap in told}
    return SealedCounts(
        segment=subject,
        gateway=str(body.get("gateway", "")),
        records=_count(body.get("count")),
        answers=_count(body.get("answers")),
        torn=_count(body.get("torn")) or 0,
        follows=str(body.get("follows", "")),
        gaps=gaps,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def compare(sealed: Sequence[SealedCounts], waiting: Iterable[str]) -> Completeness:
    """waiting: references of segments that are not sealed yet."""
    seen: dict[str, int] = {}
    rows = [_row(one, seen) for one in sealed]
    faults = [row.fault for row in rows if row.fault]
    return Completeness(rows=tuple(rows), faults=(*faults, *_chain(sealed, frozenset(waiting))))


def _row(one: SealedCounts, seen: dict[str, int]) -> Row:
    fresh = dict(_fresh(one.gaps, seen))
    unrecorded = sum(answers for answers, _, _ in fresh.values())
    records, answers = one.records or 0, one.answers or 0
    faults = []
    if one.records is None or one.answers is None:
        faults.append(f"{one.segment} lacks its receipts' or its answers' count")
    elif answers > records:
        faults.append(
            f"{one.segment} has {records} receipts, the gateway counted {answers} answers: {answers - records} are missing"
        )
    faults += [
        f"{count or 'an unknown number of'} answers between {first} and {last} left without a record (told by {one.segment})"
        for count, first, last in fresh.values()
    ]
    return Row(
        segment=one.segment,
        gateway=one.gateway,
        records=records,
        answers=answers,
        missing=max(0, answers - records),
        unanswered=max(0, records - answers),
        unrecorded=unrecorded,
        torn=one.torn,
        fault="; ".join(faults),
    )


def _fresh(
    told: Mapping[str, tuple[int, str, str]], seen: dict[str, int]
) -> Iterator[tuple[str, tuple[int, str, str]]]:
    """What was not counted yet. A gateway that is killed while it tells a gap leaves it to the next one, under the same
    id and perhaps grown: what it has grown by is new.
    """
    for identity, (answers, first, last) in told.items():
        before = seen.get(identity)
        if before is None or answers > before:
            yield identity, (answers - (before or 0), first, last)
            seen[identity] = answers


def _chain(sealed: Sequence[SealedCounts], waiting: frozenset[str]) -> list[str]:
    """A segment names the one begun before it: what is named must be sealed, or wait for its seal."""
    there = {one.segment for one in sealed} | waiting
    gone = [one for one in sealed if one.follows and one.follows not in there]
    faults = [f"{one.segment} follows {one.follows}, which is gone" for one in gone]
    firsts = [one.segment for one in sealed if not one.follows]
    if len(firsts) > 1:
        faults.append(f"{len(firsts)} segments say that none was before them: {', '.join(firsts)}")
    return faults


def missing(sealed: Sequence[SealedCounts], waiting: Iterable[str]) -> list[str]:
    """References that are named as the segment before and are nowhere."""
    there = {one.segment for one in sealed} | set(waiting)
    return sorted({one.follows for one in sealed if one.follows} - there)
