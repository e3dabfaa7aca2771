"""Terraform modules: structure, references, and nothing that must not stand in a file."""

import json
from typing import Any

import pytest

from macadam.compute.jobs import terraform
from macadam.compute.jobs.terraform import Pool
from macadam.errors import InvalidInput

POOLS = {
    "aws": [Pool(name="h100", machine="p5.48xlarge", most=4), Pool(name="l4_spot", machine="g6.xlarge", spot=True)],
    "gcp": [
        Pool(name="h100", machine="a3-highgpu-8g", most=4, accelerator="nvidia-h100-80gb", per_node=8),
        Pool(name="l4_spot", machine="g2-standard-4", spot=True, accelerator="nvidia-l4"),
    ],
}


@pytest.fixture(params=POOLS)
def module(request: pytest.FixtureRequest) -> dict[str, Any]:
    return terraform.render(request.param, POOLS[request.param])


def test_every_reference_leads_to_something_and_every_variable_is_used(module: dict[str, Any]) -> None:
    terraform.check(module)
    used = {reference for _, reference in terraform.references(module)}
    assert {f"var.{name}" for name in module["variable"]} <= used
    assert len(used) > 5


def test_a_reference_that_leads_nowhere_is_named_with_its_place(module: dict[str, Any]) -> None:
    module["output"]["bucket"]["value"] = "${aws_s3_bucket.makadam.bucket}"
    with pytest.raises(InvalidInput, match=r"output\.bucket\.value refers to aws_s3_bucket\.makadam"):
        terraform.check(module)


@pytest.mark.parametrize("text", ['${replace(var.region, "a", "")}', "${var.region", "x-${upper(var.region)}"])
def test_an_expression_that_cannot_be_checked_is_refused(module: dict[str, Any], text: str) -> None:
    module["variable"]["region"]["description"] = text
    if "}" in text:
        with pytest.raises(InvalidInput, match="computes"):
            terraform.check(module)
    else:
        with pytest.raises(InvalidInput, match="never closed"):
            terraform.check(module)


def test_a_directive_is_refused_as_it_cannot_be_checked(module: dict[str, Any]) -> None:
    module["variable"]["region"]["description"] = "%{ for x in [1] }x%{ endfor }"
    with pytest.raises(InvalidInput, match="directive"):
        terraform.check(module)


def test_a_dependency_that_leads_nowhere_is_found() -> None:
    made = terraform.render("aws", POOLS["aws"])
    made["resource"]["aws_eks_node_group"]["pool_h100"]["depends_on"] = ["aws_iam_role.nobody"]
    with pytest.raises(InvalidInput, match=r"aws_iam_role\.nobody"):
        terraform.check(made)


def test_each_variable_that_is_taken_away_is_missed(module: dict[str, Any]) -> None:
    for name in list(module["variable"]):
        taken = module["variable"].pop(name)
        with pytest.raises(InvalidInput, match=f"var.{name}"):
            terraform.check(module)
        module["variable"][name] = taken


def test_an_argument_that_a_resource_does_not_have_is_an_error(module: dict[str, Any]) -> None:
    for named in module["resource"].values():
        body = next(iter(named.values()))
        body["machine_typo"] = "x"
        with pytest.raises(InvalidInput, match="machine_typo"):
            terraform.check(module)
        del body["machine_typo"]


def test_nothing_public_and_no_credential_stands_in_a_module(module: dict[str, Any]) -> None:
    text = json.dumps(module).lower()
    for word in ("secret_key", "access_key", "password", "private_key", "token", '"credentials"', "0.0.0.0/0"):
        assert word not in text


def test_pools_scale_to_none_and_keep_others_off_their_gpus() -> None:
    groups = terraform.render("aws", POOLS["aws"])["resource"]["aws_eks_node_group"]
    assert groups["pool_h100"]["scaling_config"] == {"min_size": 0, "max_size": 4, "desired_size": 0}
    assert [group["capacity_type"] for group in groups.values()] == ["ON_DEMAND", "SPOT"]
    assert all(group["taint"][0]["key"] == "nvidia.com/gpu" for group in groups.values())
    pools = terraform.render("gcp", POOLS["gcp"])["resource"]["google_container_node_pool"]
    assert pools["pool_h100"]["node_config"]["guest_accelerator"][0]["count"] == 8


def test_the_buckets_are_closed_and_keep_what_is_overwritten() -> None:
    found = terraform.render("aws", POOLS["aws"])["resource"]
    assert set(found["aws_s3_bucket_public_access_block"]["macadam"].values()) - {True} == {
        "${aws_s3_bucket.macadam.id}"
    }
    bucket = terraform.render("gcp", POOLS["gcp"])["resource"]["google_storage_bucket"]["macadam"]
    assert (bucket["public_access_prevention"], bucket["versioning"]) == ("enforced", {"enabled": True})


def test_the_platforms_role_is_its_own_service_accounts_only() -> None:
    role = terraform.render("aws", POOLS["aws"])["resource"]["aws_iam_role"]["macadam"]
    (statement,) = json.loads(role["assume_role_policy"])["Statement"]
    (condition,) = statement["Condition"].values()
    assert "system:serviceaccount:${var.service_account}" in condition.values()


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": '${file("/etc/passwd")}'},
        {"machine": "%{ if true }m%{ endif }"},
        {"accelerator": "${var.region}"},
        {"least": 3, "most": 2},
        {"most": 0},
        {"most": 2000},
        {"machine": ""},
        {"per_node": 0},
        {"disk": 0},
    ],
)
def test_a_pool_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    facts: dict[str, Any] = {"name": "x", "machine": "m"}
    with pytest.raises(InvalidInput):
        Pool(**(facts | wrong))


def test_pools_need_names_of_their_own() -> None:
    for pools in ([], [Pool(name="a", machine="m")] * 2):
        with pytest.raises(InvalidInput):
            terraform.render("aws", pools)
