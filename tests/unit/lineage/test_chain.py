"""The chain behind a version, walked over leaves as the rooms write them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from unit.ledger.worlds import DIGEST, leaf, open_ports

from macadam.errors import NotFound
from macadam.ledger import service as ledger
from macadam.ledger.leaf import Leaf
from macadam.ledger.sequencer import integrate_all
from macadam.lineage import chain
from macadam.ports import Ports

VERSION = "model:late@1"


def said(kind: str, subject: str, *uses: str, project: str = "shop", outcome: str = "done", **body: object) -> Leaf:
    made = leaf(subject, uses=uses, **body)
    effect = {**made.decision, "effect": "allow" if outcome == "done" else "deny"}
    return msgspec.structs.replace(made, kind=kind, project=project, outcome=outcome, decision=effect)


ROAD = (
    said("access.bootstrap", f"policy:{DIGEST}", project=""),
    said("access.create_project", "project:shop"),
    said("data.register_contract", "contract:orders@1.0.0"),
    said("data.ingest", "table:orders@1", "contract:orders@1.0.0"),
    said("data.ingest", "table:other@2", "contract:orders@1.0.0"),
    said("features.build_training_set", "training_set:train@a", "table:orders@1"),
    said("models.train", "environment:lock@b"),
    said("models.train", "run:1", "training_set:train@a", "table:orders@1", "environment:lock@b"),
    said("models.register_version", VERSION, "run:1"),
    said("models.declare_thresholds", "thresholds:late@c"),
    said("models.evaluate", "evaluation:1", VERSION, "thresholds:late@c"),
    said("models.check_gate", "gate:1", VERSION, "evaluation:1", verdict="refused"),
    said("models.check_gate", "gate:2", VERSION, "evaluation:1", verdict="pass"),
    said("models.approve", "approval:1", VERSION),
    said("models.approve", "approval:2", VERSION, outcome="denied"),
    said("models.approve", "approval:3", VERSION, project="elsewhere"),
)


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    opened = open_ports(tmp_path / "home")
    opened.sql.write(lambda sql: ledger.queue(sql, *ROAD))
    integrate_all(opened)
    yield opened
    opened.sql.close()


def links(ports: Ports, before: int = len(ROAD)) -> dict[str, str]:
    with ports.sql.read() as sql:
        found = chain.behind_version(sql, "shop", VERSION, before=before)
    assert [link.entry.index for link in found] == sorted(link.entry.index for link in found)
    return {link.entry.leaf.subject: link.role for link in found}


def test_all_that_a_version_rests_on_is_in_its_chain_with_its_part(ports: Ports) -> None:
    assert links(ports) == {
        f"policy:{DIGEST}": "policy",
        "project:shop": "project",
        "contract:orders@1.0.0": "contract",
        "table:orders@1": "snapshot",
        "training_set:train@a": "training_set",
        "environment:lock@b": "environment",
        "run:1": "run",
        VERSION: "version",
        "thresholds:late@c": "thresholds",
        "evaluation:1": "evaluation",
        "gate:2": "gate",
        "approval:1": "approval",
    }


def test_what_came_later_does_not_speak_for_an_earlier_prediction(ports: Ports) -> None:
    before = next(n for n, made in enumerate(ROAD) if made.subject == "approval:1")
    assert "approval:1" not in links(ports, before)
    assert "gate:2" in links(ports, before)


def test_refused_denied_and_foreign_leaves_vouch_for_nothing(ports: Ports) -> None:
    assert not {"gate:1", "approval:2", "approval:3", "table:other@2"} & links(ports).keys()


def test_a_version_that_was_never_registered_here_has_no_chain(ports: Ports) -> None:
    with ports.sql.read() as sql:
        for project, version in (("shop", "model:late@2"), ("elsewhere", VERSION)):
            with pytest.raises(NotFound, match="no registration"):
                chain.behind_version(sql, project, version, before=len(ROAD))
