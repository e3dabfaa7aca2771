"""A model with a feature service: the gateway computes what training saw, and the whole chain proves."""

from pathlib import Path

import pytest
from unit.features import test_service as world
from unit.features.shop import ITEMS, table
from unit.models import worlds
from unit.serving import homes
from unit.serving.test_gateway import ready
from unit.serving.test_sealing import verify

from macadam.access.types import CreateProject
from macadam.features.types import BuildTrainingSet, MaterialiseOnline, RegisterViews
from macadam.journal.types import SealClosed
from macadam.models.types import RegisterVersion, Train
from macadam.serving.types import Deploy, Prove, ShowPrediction

PROJECT = world.PROJECT
PATH = f"/v1/projects/{PROJECT}/endpoints/late/predict"


@pytest.mark.slow
def test_features_come_from_the_online_store_and_the_chain_proves(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with homes.open_home(home) as platform:
        platform.call(CreateProject(project=PROJECT))
        world.add_table(platform, tmp_path / "drop", "orders", table(world.ROWS))
        world.add_table(platform, tmp_path / "drop", "items", ITEMS)
        platform.call(RegisterViews(project=PROJECT, definitions=world.definitions()))
        built = platform.call(
            BuildTrainingSet(project=PROJECT, name="all", service="deliveries", start=world.START, end=world.END)
        )
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "train.py").write_text(worlds.TRAIN)
        sets = {"train": built.ref}
        run = platform.call(Train(project=PROJECT, model="late", source=str(tmp_path / "source"), training_sets=sets))
        platform.call(RegisterVersion(project=PROJECT, model="late", run=run.ref))
        endpoint = platform.call(Deploy(project=PROJECT, endpoint="late", model="late", version="1"))
        assert endpoint.features == "deliveries"
        platform.call(MaterialiseOnline(project=PROJECT, service="deliveries", until=world.END))
        token = platform.ports.secrets.get("local-token").decode()
        with homes.gateway(home) as gateway, gateway.client(token) as client:
            ready(client)
            row = world.ROWS[0]
            inputs = {name: row[name] for name in ("shop", "item", "price")}
            at = world.END.isoformat()
            said = client.post(PATH, json={"inputs": inputs, "at": at})
            assert said.status_code == 200, said.text
            missing = client.post(PATH, json={"inputs": {"shop": "a"}})
            assert (missing.status_code, missing.json()["details"]) == (422, {"input": "item"})
        page = platform.call(ShowPrediction(project=PROJECT, prediction=said.json()["prediction"]))
        assert set(page.record["features"]) == {feature.name for feature in built.columns}
        assert page.record["features"]["last_minutes"] is not None
        platform.call(SealClosed(project=PROJECT))
        proof = platform.call(Prove(project=PROJECT, prediction=page.id))
        done = verify(proof.bundle, proof.key, tmp_path)
        assert done.returncode == 0, done.stdout
        assert "snapshot -> contract" in done.stdout
