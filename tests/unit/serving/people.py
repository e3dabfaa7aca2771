"""A home whose records have personal values, written as a gateway writes them, without a process or a model."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from unit.serving.leave import to_ask
from unit.serving.test_batch import DEPLOYMENT, Half, Nothing

from macadam.app.platform import Platform
from macadam.journal.types import SealClosed
from macadam.journal.writer import JournalWriter
from macadam.personal import vault
from macadam.personal.cloak import Cloaks
from macadam.personal.types import PersonalFields
from macadam.serving.batch import Ask, Batcher
from macadam.serving.journals import working
from macadam.serving.runtime import Serving

PROJECT = DEPLOYMENT.project
FIELDS = PersonalFields(subject="c", inputs=("c", "x"), features=("c", "x"), output=True)


def prepare(platform: Platform) -> None:
    vault.prepare(platform.ports.settings.home, platform.ports.secrets, PROJECT)


def serving(fields: PersonalFields | None = FIELDS) -> Serving:
    return Serving(msgspec.structs.replace(DEPLOYMENT, personal=fields, at=datetime(2026, 1, 1, tzinfo=UTC)), Half())


class Writing:
    """What a gateway process holds: its journal and the keys that it knows."""

    def __init__(self, platform: Platform, journal: JournalWriter) -> None:
        self.cloaks = Cloaks(platform.ports.settings.home, platform.ports.secrets)
        self.batcher = Batcher(Nothing(), lambda _: working(journal), self.cloaks.of)  # type: ignore[arg-type]
        self.serving = serving()

    def predict(self, people: Sequence[str], value: float = 0.5) -> list[str]:
        """One batch. Returns the ids."""
        asks = [
            Ask(
                serving=self.serving,
                actor="service:web",
                granted=to_ask(self.serving.deployment.endpoint),
                inputs={"x": value, "c": one},
            )
            for one in people
        ]
        self.batcher.run(asks)
        assert {ask.status for ask in asks} == {200}, asks[0].answer
        return [msgspec.json.decode(ask.answer.partition(b"\r\n\r\n")[2])["prediction"] for ask in asks]


@contextlib.contextmanager
def gateway(platform: Platform) -> Iterator[Writing]:
    folder = platform.ports.settings.home / "journal" / PROJECT
    with JournalWriter(folder, gateway="g", worker=0, project=PROJECT) as journal:
        writing = Writing(platform, journal)
        try:
            yield writing
        finally:
            writing.cloaks.close()


def seal(platform: Platform) -> None:
    platform.call(SealClosed(project=PROJECT))


def files_with(home: Path, *needles: bytes) -> list[str]:
    """Every file of the home, of whatever kind, that holds one of these."""
    found = [path for path in home.rglob("*") if path.is_file() and any(n in path.read_bytes() for n in needles)]
    return [str(path.relative_to(home)) for path in found]
