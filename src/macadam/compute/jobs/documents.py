"""Objects as YAML documents, held against their schemas before they become text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from macadam.compute.jobs import validation
from macadam.compute.jobs.kubernetes import Object
from macadam.lazy import lazy

if TYPE_CHECKING:
    import yaml
else:
    yaml = lazy("yaml")


def written(objects: Sequence[Object]) -> str:
    """Kubernetes objects as one file. Raises InvalidInput for what no cluster should be given."""
    validation.check_objects(objects)
    return plain(objects)


def plain(documents: Sequence[Object]) -> str:
    """Written out in full: the same part in two places is no alias, which people would have to follow."""
    copies = [msgspec.json.decode(msgspec.json.encode(one)) for one in documents]
    return str(yaml.safe_dump_all(copies, sort_keys=False, width=120, allow_unicode=True))
