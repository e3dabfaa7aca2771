"""What stands before a gateway's answers beside the policies: how much each caller may ask, and the count of refusals.

Each gateway counts by itself. For the event loop's thread only.
"""

from pathlib import Path

from macadam.access.rates import Bucket, Buckets, Limit, address_key
from macadam.operations import Actor, Decision
from macadam.serving import answers
from macadam.serving.denials import Denial, Denials
from macadam.settings import Access

_LONGEST_REASON = 120


class Guard:
    """known: buckets by principal; strangers: by address (see `address_key`). folder: where refusals are counted."""

    def __init__(self, settings: Access, folder: Path) -> None:
        self.known = Buckets(Limit(per_second=settings.gateway_rate, burst=settings.gateway_burst))
        self.strangers = Buckets(Limit(per_second=settings.anonymous_rate, burst=settings.anonymous_burst))
        self.denials = Denials(folder)

    def stranger(self, peer: str, refused: bytes, now: float) -> bytes:
        """What to answer without a valid token: `refused`, or 429 for an address that has had too many of those."""
        bucket = self.strangers.of(address_key(peer)) if peer else None
        if bucket is None or bucket.take(now):
            self.denials.note(Denial(actor="", project="", asset="", reason="not authenticated", status=401))
            return refused
        self.denials.note(Denial(actor="", project="", asset="", reason="too many without a valid token", status=429))
        return answers.of_error(bucket.refusal(now))

    def too_fast(self, actor: str, project: str, asset: str, bucket: Bucket, now: float) -> bytes:
        """The answer to a principal whose bucket is empty."""
        self.denials.note(Denial(actor=actor, project=project, asset=asset, reason="too many requests", status=429))
        return answers.of_error(bucket.refusal(now))

    def forbid(self, actor: Actor, permission: str, asset: str, project: str, decision: Decision) -> bytes:
        """The answer to a principal whom the policies deny something."""
        why = ", ".join(decision.policies) or "no policy allows it"
        reason = f"{permission}: {why}"[:_LONGEST_REASON]
        self.denials.note(Denial(actor=actor.id, project=project, asset=asset, reason=reason, status=403))
        return answers.problem(
            403,
            "not-authorised",
            f"{actor.id} may not {permission} on {asset}: {decision.reason}.",
            next_step="Ask an administrator for a role that allows it (`macadam roles grant`).",
            details={"permission": permission, "resource": asset, "policies": list(decision.policies)},
        )
