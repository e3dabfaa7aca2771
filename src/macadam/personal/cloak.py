"""How a gateway takes personal values out of records: encrypted beside them, with commitments in their place.

It needs the home's secrets and no control plane. Keys of people met lately are kept in memory until the next erasure
anywhere: that changes a number which all gateways see at once, in memory they share.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from macadam.personal import sidecar
from macadam.personal.cipher import SubjectKey
from macadam.personal.sidecar import Sealed
from macadam.personal.types import PersonalFields
from macadam.personal.vault import Vault
from macadam.ports import Secrets

MOST_KEYS = 10_000
"""Of one project, kept in memory: some 10 MB. More people than these cost a read of the database each."""
_encode = msgspec.json.Encoder().encode


class Hidden(msgspec.Struct, frozen=True):
    """One prediction without its personal values. note: the record's field `personal` as JSON; frame: the ciphertext."""

    inputs: dict[str, object]
    features: dict[str, object]
    note: bytes
    frame: bytes


class ProjectCloak:
    """Hides the values of one project's predictions. For one thread."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known: OrderedDict[str, SubjectKey] = OrderedDict()
        self._generation = -1

    @contextmanager
    def using(self, ids: Sequence[str]) -> Iterator[Mapping[str, SubjectKey]]:
        """The keys of these people, which no erasure destroys until what they encrypt is written.

        Raises Unavailable, Busy, StorageFull.
        """
        with self._vault.using() as generation:
            if generation != self._generation:
                self._known.clear()
                self._vault.forget_wrapping_keys()
                self._generation = generation
            yield self._keys(ids)

    def _keys(self, ids: Sequence[str]) -> dict[str, SubjectKey]:
        found = {}
        for one in ids:
            key = self._known.get(one)
            if key is not None:
                self._known.move_to_end(one)
                found[one] = key
        missing = [one for one in dict.fromkeys(ids) if one not in found]
        if missing:
            made = self._vault.require(missing)
            found.update(made)
            self._known.update(made)
            while len(self._known) > MOST_KEYS:
                self._known.popitem(last=False)
        return found

    def close(self) -> None:
        self._vault.close()


class Cloaks:
    """One per project, opened at first use."""

    def __init__(self, home: Path, secrets: Secrets) -> None:
        self._home = home
        self._secrets = secrets
        self._open: dict[str, ProjectCloak] = {}

    def of(self, project: str) -> ProjectCloak:
        """Raises Unavailable."""
        found = self._open.get(project)
        if found is None:
            found = self._open[project] = ProjectCloak(Vault(self._home, self._secrets, project))
        return found

    def close(self) -> None:
        for one in self._open.values():
            one.close()
        self._open.clear()


def hide(
    key: SubjectKey,
    fields: PersonalFields,
    where: tuple[str, str],
    inputs: Mapping[str, object],
    features: Mapping[str, object],
    output: bytes,
) -> Hidden:
    """Encrypts the personal values of one prediction. where: project and prediction; output: JSON.

    Raises OverflowError for a whole number of more than 64 bits.
    """
    values = [(f"inputs.{name}", _encode(inputs[name])) for name in fields.inputs if name in inputs]
    values += [(f"features.{name}", _encode(features[name])) for name in fields.features if name in features]
    if fields.output:
        values.append(("output", output))
    sealed = key.seal(*where, values)
    return Hidden(
        inputs=_without(inputs, fields.inputs),
        features=_without(features, fields.features),
        note=_encode({"subject": key.text, "fields": key.commitments(sealed)}),
        frame=sidecar.frame(key.subject, where[1], Sealed(key.key_id, sealed)),
    )


def _without(values: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in names}
