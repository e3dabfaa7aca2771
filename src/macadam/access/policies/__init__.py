"""The policies as data, and what a set of them is: text, schema and the digest that both are recorded under.

The text is Cedar (https://docs.cedarpolicy.com). Deciding with it is for `macadam.access.engine`.
"""

from pathlib import Path

import msgspec

from macadam.values import digest_of


class PolicyText(msgspec.Struct, frozen=True, kw_only=True):
    """policies: Cedar policies, each with an @id. schema: the Cedar schema they are read under."""

    policies: str
    schema: str

    @property
    def document(self) -> bytes:
        """Both texts as one object: what the digest is over, so that nobody can swap the schema unseen."""
        return msgspec.json.encode({"policies": self.policies, "schema": self.schema}, order="sorted")

    @property
    def digest(self) -> str:
        return digest_of(self.document)


def built_in() -> PolicyText:
    """The roles that come with this release."""
    here = Path(__file__).parent
    return PolicyText(
        policies=(here / "roles.cedar").read_text(encoding="utf-8"),
        schema=(here / "access.cedarschema").read_text(encoding="utf-8"),
    )
