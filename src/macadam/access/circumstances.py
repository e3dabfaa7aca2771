"""What surrounds a call, as policies may read it: gathered only where a policy looks, and told apart in what is kept.

Who calls, what for and from where are the caller's own words unless its credential proves them; risk, location and
classification are the platform's records; the time is the platform's clock, UTC.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from macadam.access.policies import ProjectText
from macadam.access.policies.parsing import EVERYTHING
from macadam.errors import InvalidInput
from macadam.operations import UNDECLARED, Declared


def declared(purpose: str, location: str) -> Declared:
    """What a caller says, checked. Raises InvalidInput: text of any length and kind would stand in the ledger."""
    if not purpose and not location:
        return UNDECLARED
    try:
        return msgspec.convert({"purpose": purpose, "location": location}, Declared)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"The purpose or location that the call declares does not fit: {error}.",
            next_step="Name each in at most 63 letters, digits, dots and dashes, such as x-macadam-purpose: billing.",
        ) from error


class KnownAsset(msgspec.Struct, frozen=True, kw_only=True):
    """What is recorded of an asset beside its name. Empty: nobody said."""

    classification: str = ""
    location: str = ""


class KnownProject(msgspec.Struct, frozen=True, kw_only=True):
    """risk: its class; location: where its data lives, '' if nobody said. policies: its own, if any are active;
    policy_set: the digest that decisions here then name. assets: by reference, without version.
    """

    risk: str = ""
    location: str = ""
    policies: ProjectText | None = None
    policy_set: str = ""
    assets: dict[str, KnownAsset] = {}


_NOWHERE = KnownProject()


def lasts(reads: frozenset[str]) -> bool:
    """Whether a decision by policies that read these may be kept: not if it changes with the clock."""
    return _lasts(reads)


@lru_cache(maxsize=1024)
def _lasts(reads: frozenset[str]) -> bool:
    return not any(read == EVERYTHING or read.partition(".")[0] == "time" for read in reads)


def key(reads: frozenset[str], declared: Declared) -> tuple[str, ...]:
    """What a kept decision depends on beside the call: the caller's words, where a policy reads them."""
    purpose, place = _depends(reads)
    return (declared.purpose if purpose else "", declared.location if place else "")


@lru_cache(maxsize=1024)
def _depends(reads: frozenset[str]) -> tuple[bool, bool]:
    everything = EVERYTHING in reads
    return everything or "purpose" in reads, everything or "caller_location" in reads


def gather(
    reads: frozenset[str],
    *,
    in_scope: bool,
    project: str,
    resource: str,
    place: KnownProject | None,
    declared: Declared,
    now: Callable[[], datetime] | datetime,
) -> str:
    """The context of a decision as JSON: what the policies read, and nothing that costs without being read."""
    if reads <= _USUAL:
        return '{"in_scope":true}' if in_scope else '{"in_scope":false}'
    known = place or _NOWHERE
    everything = EVERYTHING in reads
    found: dict[str, object] = {
        "in_scope": in_scope,
        "project": project,
        "asset": resource.partition(":")[0],
        "risk": known.risk,
        "location": known.location,
    }
    if declared.purpose:
        found["purpose"] = declared.purpose
    if declared.location:
        found["caller_location"] = declared.location
    if everything or not lasts(reads):
        found["time"] = _time(now if isinstance(now, datetime) else now(), reads)
    return json.dumps(found)


_USUAL = frozenset({"in_scope"})


def _time(now: datetime, reads: frozenset[str]) -> dict[str, object]:
    """hour: 0 to 23; weekday: 1 (Monday) to 7, as ISO 8601 counts. Both UTC, as the instant is."""
    at = now.astimezone(UTC)
    found: dict[str, object] = {"hour": at.hour, "weekday": at.isoweekday()}
    if reads & {"time", "time.instant", EVERYTHING}:  # parsing it costs Cedar as much as all the rest
        found["instant"] = {"__extn": {"fn": "datetime", "arg": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"}}
    return found


def asset_attributes(place: KnownProject, resource: str) -> dict[str, str]:
    """Of the asset that the resource is, or is a version of. What nobody recorded is absent, not empty."""
    known = place.assets.get(resource) or place.assets.get(resource.partition("@")[0])
    location = (known.location if known else "") or place.location
    found = {"classification": known.classification if known else "", "location": location}
    return {name: value for name, value in found.items() if value}
