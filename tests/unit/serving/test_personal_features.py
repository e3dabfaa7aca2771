"""From a contract's classification to an erased person: through feature definitions, the online store and a gateway."""

from pathlib import Path

import pytest
from unit.features import test_service as world
from unit.features.shop import ITEMS, SERVICE, table
from unit.models import worlds
from unit.serving import homes
from unit.serving.test_features import PATH, PROJECT
from unit.serving.test_gateway import ready

from macadam.access import service as access
from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.data.types import RegisterContract, RegisterSource, ShowContract
from macadam.errors import ContractInvalid
from macadam.features import online
from macadam.features.types import BuildTrainingSet, MaterialiseOnline, RegisterViews
from macadam.models.types import RegisterVersion, Train
from macadam.personal.types import EraseSubject
from macadam.serving.types import Deploy, ShowPrediction

DEPLOY = Deploy(project=PROJECT, endpoint="late", model="late", version="1")


def furnish(platform: Platform, folder: Path) -> None:
    platform.call(CreateProject(project=PROJECT))
    world.add_table(platform, folder / "drop", "orders", table(world.ROWS))
    world.add_table(platform, folder / "drop", "items", ITEMS)
    platform.call(RegisterViews(project=PROJECT, definitions=world.definitions()))
    built = platform.call(
        BuildTrainingSet(project=PROJECT, name="all", service="deliveries", start=world.START, end=world.END)
    )
    (folder / "source").mkdir()
    (folder / "source" / "train.py").write_text(worlds.TRAIN)
    sets = {"train": built.ref}
    run = platform.call(Train(project=PROJECT, model="late", source=str(folder / "source"), training_sets=sets))
    platform.call(RegisterVersion(project=PROJECT, model="late", run=run.ref))
    platform.call(MaterialiseOnline(project=PROJECT, service="deliveries", until=world.END))


def name_the_person(platform: Platform, folder: Path) -> None:
    """A second version of the contract, which says that a shop is a person."""
    text = platform.call(ShowContract(project=PROJECT, contract="orders")).text
    shop = f"name: shop, {world.TYPES['shop']}"
    assert shop in text
    text = text.replace(shop, f"{shop}, customProperties: [{{property: subject, value: true}}]")
    platform.call(RegisterContract(project=PROJECT, text=text.replace("version: 1.0.0", "version: 1.1.0")))
    path, contract = "orders-{n}.csv", "orders@1.1.0"
    source = RegisterSource(
        project=PROJECT, source="orders", directory=str(folder), path=path, contract=contract, table="orders"
    )
    platform.call(source)


def online_rows(platform: Platform, person: str) -> int:
    """Rows of any view whose key names this shop."""
    found = 0
    for view in SERVICE.table_views:
        start = online.prefix(PROJECT, view)
        keys = [key[len(start) + 1 :].decode().split(online.SEPARATOR) for key, _ in platform.ports.online.scan(start)]
        found += sum(person in key for key in keys)
    return found


@pytest.mark.slow
def test_a_classified_column_is_hidden_everywhere_and_a_person_erased_with_their_online_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(world.TYPES, "price", f"{world.TYPES['price']}, classification: PII")
    home = tmp_path / "home"
    with homes.open_home(home) as platform:
        furnish(platform, tmp_path)
        with pytest.raises(ContractInvalid, match="price, price_per_weight are personal, and nothing says whose"):
            platform.call(DEPLOY)
        assert not (home / "subjects" / PROJECT).exists()
        name_the_person(platform, tmp_path / "drop")
        endpoint = platform.call(DEPLOY)
        assert endpoint.personal is not None
        with platform.ports.sql.read() as sql:
            told = access.snapshot(sql).projects[PROJECT].assets
        for made in ("table:orders", "training_set:all", "model:late", "endpoint:late"):
            assert told[made].classification == "personal", "policies can ask for it"
        assert "table:items" not in told
        assert (endpoint.personal.subject, set(endpoint.personal.inputs)) == ("shop", {"shop", "price"})
        assert {"price", "last_note", "dish_late_mean_1d"} <= set(endpoint.personal.features)
        token = platform.ports.secrets.get("local-token").decode()
        request = {"inputs": {"shop": "north", "item": 1, "price": 3.0}, "at": world.END.isoformat()}
        with homes.gateway(home) as gateway, gateway.client(token) as client:
            ready(client)
            first = client.post(PATH, json=request).json()["prediction"]
            page = platform.call(ShowPrediction(project=PROJECT, prediction=first))
            assert page.personal is not None
            assert page.record["inputs"] == {"item": 1}
            assert set(page.record["features"]) == {"item_weight", "hour"}
            assert page.personal.values["features.last_minutes"] is not None
            assert online_rows(platform, "north") > 1
            others = sum(online_rows(platform, shop) for shop in ("south", "1", "2"))
            done = platform.call(EraseSubject(project=PROJECT, subject="north"))
            assert (done.predictions, online_rows(platform, "north")) == (1, 0)
            assert done.online_rows > 1
            assert sum(online_rows(platform, shop) for shop in ("south", "1", "2")) <= others
            again = client.post(PATH, json=request).json()["prediction"]
        page = platform.call(ShowPrediction(project=PROJECT, prediction=again))
        assert page.personal is not None
        assert page.personal.values["features.last_minutes"] is None
