"""The policies as data, and what a set of them is: text, schema and the digest that both are recorded under.

The text is Cedar (https://docs.cedarpolicy.com). Reading it is for `parsing`, sorting it for quick answers for
`compiled`, deciding with it for `macadam.access.engine`.
"""

from collections.abc import Mapping
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


class ProjectText(msgspec.Struct, frozen=True, kw_only=True):
    """The policies that a project adds, by the name of their file. They hold in that project and nowhere else."""

    project: str
    files: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, project: str, files: Mapping[str, str]) -> "ProjectText":
        return cls(project=project, files=tuple(sorted(files.items())))

    @property
    def document(self) -> bytes:
        """One object, the project's name in it: the same text in another project is another set."""
        return msgspec.json.encode({"project": self.project, "files": dict(self.files)}, order="sorted")

    @property
    def digest(self) -> str:
        return digest_of(self.document)


def effective_document(platform: str, project: str, own: str) -> bytes:
    """What decides in a project: the platform's set and the project's, each by its digest."""
    return msgspec.json.encode({"platform": platform, "project": project, "own": own}, order="sorted")


def effective_digest(platform: str, project: str, own: str) -> str:
    """What decisions in a project name. Without policies of its own, that is the platform's set."""
    return digest_of(effective_document(platform, project, own)) if own else platform


def built_in() -> PolicyText:
    """The roles that come with this release."""
    here = Path(__file__).parent
    return PolicyText(
        policies=(here / "roles.cedar").read_text(encoding="utf-8"),
        schema=(here / "access.cedarschema").read_text(encoding="utf-8"),
    )
