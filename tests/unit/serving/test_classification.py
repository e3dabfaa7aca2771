"""How a table is classified reaches what is made from it: training sets, models, endpoints, up to a gateway's answers."""

from pathlib import Path

import pytest
from unit.models import worlds
from unit.serving import homes
from unit.serving.homes import INPUTS, MODEL, PATH, PROJECT
from unit.serving.test_gateway import ready, until

from macadam.access import service as access
from macadam.access.policy_types import ActivatePolicies, ApprovePolicies, ProposePolicies
from macadam.access.types import CreatePrincipal, GrantRole, IssueToken
from macadam.app.platform import Platform
from macadam.data.types import RegisterContract, RegisterSource
from macadam.errors import NotAuthorised
from macadam.models.types import ReadModelFile, RegisterVersion, Train
from macadam.operations import Declared
from macadam.serving.types import Deploy, Rollback

CONTRACT = """
apiVersion: v3.2.0
kind: DataContract
id: flights
version: {version}
status: active
schema:
  - name: flights
    properties:
      - {{name: id, logicalType: integer, physicalType: bigint, required: true, primaryKey: true}}
      - {{name: note, logicalType: string, physicalType: varchar, classification: {word}}}
"""
POLICY = """
@id("care-only")
forbid (principal, action, resource)
when { resource has classification && resource.classification == "personal" }
unless { context has purpose && context.purpose == "care" };
"""
JAN = "training_set:jan"


def contract(platform: Platform, version: str, word: str) -> None:
    platform.call(RegisterContract(project=PROJECT, text=CONTRACT.format(version=version, word=word)))


def source(platform: Platform, folder: Path) -> None:
    """Registered with the newest version of its contract."""
    wanted = RegisterSource(
        project=PROJECT, source="flights", directory=str(folder), path="{n}.csv", contract="flights", table="flights"
    )
    platform.call(wanted)


def told(platform: Platform) -> dict[str, str]:
    with platform.ports.sql.read() as sql:
        known = access.snapshot(sql).projects[PROJECT].assets
    return {name: asset.classification for name, asset in known.items() if asset.classification}


def deploy(platform: Platform, model: str, endpoint: str, **declared: object) -> None:
    platform.call(Deploy(project=PROJECT, endpoint=endpoint, model=model, version="1", **declared))  # type: ignore[arg-type]


def train(platform: Platform, folder: Path, model: str, training_set: str) -> str:
    return platform.call(
        Train(project=PROJECT, model=model, source=str(folder), training_sets={"train": training_set})
    ).ref


def put_in_force(platform: Platform) -> None:
    made = platform.call(ProposePolicies(project=PROJECT, files={"policies/care.cedar": POLICY}))
    platform.call(CreatePrincipal(principal="ann"))
    platform.call(GrantRole(project=PROJECT, principal="ann", role="approver"))
    token = platform.call(IssueToken(principal="ann")).token
    platform.call(ApprovePolicies(project=PROJECT, version=made.version, ref=made.ref), token=token)
    platform.call(ActivatePolicies(project=PROJECT, version=made.version))


def test_what_is_made_from_a_table_has_its_class_and_follows_its_contract(platform: Platform, tmp_path: Path) -> None:
    deploy(platform, MODEL, "before")
    assert told(platform) == {}
    contract(platform, "1.0.0", "confidential")
    source(platform, tmp_path)
    tables = ("table:flights", "table:flights__quarantine")
    made: tuple[str, ...] = (JAN, f"model:{MODEL}", "endpoint:before")
    assert told(platform) == dict.fromkeys((*tables, *made), "confidential")
    deploy(platform, MODEL, "after")
    made = (*made, "endpoint:after")
    assert told(platform) == dict.fromkeys((*tables, *made), "confidential"), "what is made later has it too"
    contract(platform, "1.1.0", "PII")
    assert told(platform) == dict.fromkeys((*tables, *made), "personal"), "a stricter contract is heard at once"
    contract(platform, "1.2.0", "public")
    assert told(platform)[JAN] == "personal", "a milder one only with the source"
    contract(platform, "1.3.0", "internal")
    source(platform, tmp_path)
    assert told(platform) == dict.fromkeys((*tables, *made), "internal")


def test_an_endpoint_with_personal_fields_is_personal_until_another_deployment_answers(platform: Platform) -> None:
    deploy(platform, MODEL, "open")
    deploy(platform, MODEL, "people", subject="carrier", personal=("carrier",))
    assert told(platform) == {"endpoint:people": "personal"}
    deploy(platform, MODEL, "open", subject="carrier", personal=("carrier",))
    deploy(platform, MODEL, "open", subject="carrier", personal=("carrier",))
    platform.call(Rollback(project=PROJECT, endpoint="open"))
    assert told(platform) == dict.fromkeys(("endpoint:people", "endpoint:open"), "personal")


@pytest.mark.slow
def test_a_policy_on_personal_data_stops_its_training_set_its_model_and_its_endpoint_and_nothing_else(
    platform: Platform, home: Path, token: str, tmp_path: Path
) -> None:
    digest = platform.ports.objects.put(worlds.parquet(worlds.rows(300, seed=2)))
    plain_set = f"training_set:weather@{digest[7:19]}"
    homes.evidence(platform, "features.build_training_set", plain_set, ["table:weather@7"], digest)
    folder = home.parent / "source"
    folder.mkdir()
    (folder / "train.py").write_text(worlds.TRAIN)
    run = train(platform, folder, "plain", plain_set)
    platform.call(RegisterVersion(project=PROJECT, model="plain", run=run))
    deploy(platform, MODEL, "delay")
    deploy(platform, "plain", "plain")
    contract(platform, "1.0.0", "public")
    source(platform, tmp_path)
    put_in_force(platform)
    with homes.gateway(home) as gateway, gateway.client(token) as client:
        ready(client)
        plain_path, body = PATH.replace("/delay/", "/plain/"), {"inputs": INPUTS}
        assert client.post(PATH, json=body).status_code == 200, "nobody has said yet that it is personal"
        contract(platform, "1.1.0", "personal")
        until(lambda: client.post(PATH, json=body).status_code == 403)
        assert client.post(PATH, json=body, headers={"x-macadam-purpose": "care"}).status_code == 200
        assert client.post(PATH, json=body, headers={"x-macadam-purpose": "advertising"}).status_code == 403
        assert client.post(plain_path, json=body).status_code == 200
    export = ReadModelFile(project=PROJECT, model=MODEL, version="1", file="model.onnx")
    with pytest.raises(NotAuthorised, match="care-only"):
        platform.call(export)
    with Platform(platform.ports.settings, declared=Declared(purpose="care")) as carer:
        assert carer.call(export).data
    assert platform.call(ReadModelFile(project=PROJECT, model="plain", version="1", file="model.onnx")).data
    jan = f"{JAN}@{platform.ports.objects.put(worlds.parquet(worlds.rows(400, seed=1)))[7:19]}"
    with pytest.raises(NotAuthorised, match="care-only"):
        train(platform, folder, "fresh", jan)
    assert train(platform, folder, "fresh", plain_set).startswith("run:")
