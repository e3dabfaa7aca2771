"""Terraform modules in JSON syntax: a pool of GPU nodes, a bucket and an identity for the platform, on AWS or Google Cloud.

They add to a cluster that exists and hold no secret: credentials are the provider's own business. No provider can be asked here, so what is checked
is the structure: our schema of each resource, and that every reference leads to something. https://developer.hashicorp.com/terraform/language/syntax/json
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from macadam.compute.jobs import validation
from macadam.compute.jobs.naming import dns_label
from macadam.errors import InvalidInput

Module = dict[str, Any]

_EXPRESSION = re.compile(r"\$\{([^}]*)\}")
_REFERENCE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-zA-Z_][a-zA-Z0-9_]*)+\Z")
_NAMED = re.compile(r"[A-Za-z0-9._-]{0,100}\Z")
_NODES = 1000  # in one pool, the limit of GKE


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of GPU nodes. machine: the cloud's instance type; accelerator, per_node: Google's name of its GPUs and how many, for
    machines that do not bring them. least, most: nodes; least 0 = none while nothing runs.
    """

    name: str
    machine: str
    least: int = 0
    most: int = 1
    spot: bool = False
    accelerator: str = ""
    per_node: int = 1
    disk: int = 200

    def __post_init__(self) -> None:
        if not (0 <= self.least <= self.most <= _NODES and self.most >= 1):
            raise InvalidInput(
                f"A pool of {self.least} to {self.most} nodes is none.", next_step=f"Give 0 ≤ least ≤ most ≤ {_NODES}."
            )
        for said in (self.machine, self.accelerator):
            # Terraform takes '${' and '%{' in any text for a program; no cloud has such names.
            if not _NAMED.match(said):
                raise InvalidInput(
                    f"{said!r} is no machine and no accelerator.", next_step="Name it as the cloud does."
                )
        if not (self.machine and self.per_node >= 1 and self.disk >= 1):
            raise InvalidInput(f"The pool {self.name!r} says too little.", next_step="Name its machine and its disk.")


def render(cloud: Literal["aws", "gcp"], pools: Iterable[Pool]) -> Module:
    """The module, checked. Raises InvalidInput for pools of one name, or for what is structurally wrong."""
    listed = list(pools)
    names = [pool.name for pool in listed]
    if not names or len(set(names)) != len(names):
        raise InvalidInput("The pools have no names of their own.", next_step="Name each pool once.")
    module = _aws(listed) if cloud == "aws" else _gcp(listed)
    check(module)
    return module


def check(module: Module) -> None:
    """Raises InvalidInput for fields that a resource does not have, and for references that lead nowhere."""
    validation.check_module(module)
    declared = set(_declared(module))
    for where, reference in references(module):
        if ".".join(reference.split(".")[: _depth(reference)]) not in declared:
            raise InvalidInput(
                f"{where} refers to {reference}, which is not declared.",
                next_step="Declare it, or correct the reference.",
            )


def references(module: Module) -> Iterator[tuple[str, str]]:
    """Each reference with the path where it stands: ('resource.aws_s3_bucket.x.bucket', 'var.name').

    Raises InvalidInput for an expression that is more than a reference: functions and quotes need an HCL parser to be
    checked, and inside a policy's JSON their quotes would be escaped and so broken.
    """
    for where, text in _texts(module, ""):
        found = [text] if ".depends_on[" in where else _EXPRESSION.findall(text)
        if "%{" in text:
            raise InvalidInput(f"{where} opens a directive.", next_step="Refer to a value as it is.")
        if text.count("${") != len(_EXPRESSION.findall(text)):
            raise InvalidInput(f"{where} opens an expression that is never closed.", next_step="Close it.")
        for reference in found:
            if not _REFERENCE.match(reference):
                raise InvalidInput(f"{where} computes {reference!r}.", next_step="Refer to a value as it is.")
            yield where, reference


def _depth(reference: str) -> int:
    """How many parts of a reference name what it refers to: var.x, local.x, module.x; data.type.name; type.name."""
    return 3 if reference.startswith("data.") else 2


def _declared(module: Module) -> Iterator[str]:
    yield from (f"var.{name}" for name in module.get("variable", {}))
    yield from (f"local.{name}" for name in module.get("locals", {}))
    yield from (f"{kind}.{name}" for kind, named in module.get("resource", {}).items() for name in named)
    yield from (f"data.{kind}.{name}" for kind, named in module.get("data", {}).items() for name in named)


def _texts(part: object, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(part, str):
        yield where, part
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from _texts(value, f"{where}.{key}".lstrip("."))
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from _texts(value, f"{where}[{index}]")


def _variable(kind: str, description: str, default: object = None) -> Module:
    found: Module = {"type": kind, "description": description}
    return found if default is None else found | {"default": default}


def _label(name: str) -> str:
    """A name as Terraform has them: letters, digits, '_', '-', and no digit first."""
    return "pool_" + dns_label(name).replace("-", "_")


# --- AWS


def _aws(pools: list[Pool]) -> Module:
    return {
        "terraform": {
            "required_version": ">= 1.5",
            "required_providers": {"aws": {"source": "hashicorp/aws", "version": ">= 5.60, < 7"}},
        },
        "provider": {"aws": {"region": "${var.region}"}},
        "variable": {
            "region": _variable("string", "Region of the cluster, such as eu-central-1"),
            "cluster_name": _variable("string", "Name of the EKS cluster that exists"),
            "subnet_ids": _variable("list(string)", "Subnets for GPU nodes"),
            "bucket_name": _variable("string", "Name of the bucket for objects and checkpoints: unique in all of S3"),
            "oidc_provider_arn": _variable("string", "ARN of the cluster's IAM OIDC provider"),
            "oidc_provider": _variable("string", "Its issuer, without https://"),
            "service_account": _variable("string", "Macadam's service account, as NAMESPACE:NAME", "macadam:macadam"),
        },
        "resource": _aws_pools(pools) | _aws_bucket() | _aws_identity(),
        "output": {
            "bucket": {"description": "Where objects go", "value": "${aws_s3_bucket.macadam.bucket}"},
            "role": {"description": "For the service account's annotation", "value": "${aws_iam_role.macadam.arn}"},
        },
    }


def _aws_pools(pools: list[Pool]) -> Module:
    policies = ("AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryReadOnly")
    attached = {
        f"nodes_{index}": {
            "role": "${aws_iam_role.nodes.name}",
            "policy_arn": f"arn:aws:iam::aws:policy/{policy}",
        }
        for index, policy in enumerate(policies)
    }
    groups = {
        _label(pool.name): {
            "cluster_name": "${var.cluster_name}",
            "node_group_name": dns_label(pool.name),
            "node_role_arn": "${aws_iam_role.nodes.arn}",
            "subnet_ids": "${var.subnet_ids}",
            "ami_type": "AL2023_x86_64_NVIDIA",
            "capacity_type": "SPOT" if pool.spot else "ON_DEMAND",
            "instance_types": [pool.machine],
            "disk_size": pool.disk,
            "scaling_config": {"min_size": pool.least, "max_size": pool.most, "desired_size": pool.least},
            "labels": _node_labels(pool),
            "taint": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}],
            # The autoscaler sizes the group; Terraform must not set it back.
            "lifecycle": {"ignore_changes": ["scaling_config[0].desired_size"]},
            "depends_on": [f"aws_iam_role_policy_attachment.{name}" for name in attached],
        }
        for pool in pools
    }
    return {
        "aws_eks_node_group": groups,
        "aws_iam_role_policy_attachment": attached,
    }


def _aws_bucket() -> Module:
    bucket = "${aws_s3_bucket.macadam.id}"
    closed = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    encryption = {"apply_server_side_encryption_by_default": {"sse_algorithm": "aws:kms"}, "bucket_key_enabled": True}
    return {
        "aws_s3_bucket": {"macadam": {"bucket": "${var.bucket_name}", "force_destroy": False}},
        "aws_s3_bucket_public_access_block": {"macadam": {"bucket": bucket} | dict.fromkeys(closed, True)},
        "aws_s3_bucket_versioning": {
            "macadam": {"bucket": bucket, "versioning_configuration": {"status": "Enabled"}},
        },
        "aws_s3_bucket_server_side_encryption_configuration": {"macadam": {"bucket": bucket, "rule": [encryption]}},
    }


def _aws_identity() -> Module:
    """Roles of nodes and platform. Its pods take theirs by their service account (IRSA): no key to keep, and none to lose."""
    trust = {
        "Effect": "Allow",
        "Principal": {"Federated": "${var.oidc_provider_arn}"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {
            "StringEquals": {
                "${var.oidc_provider}:aud": "sts.amazonaws.com",
                "${var.oidc_provider}:sub": "system:serviceaccount:${var.service_account}",
            }
        },
    }
    machines = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    objects = {
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"],
        "Resource": ["${aws_s3_bucket.macadam.arn}", "${aws_s3_bucket.macadam.arn}/*"],
    }
    return {
        "aws_iam_role": {
            "nodes": {"name_prefix": "macadam-nodes-", "assume_role_policy": _policy([machines])},
            "macadam": {"name_prefix": "macadam-", "assume_role_policy": _policy([trust])},
        },
        "aws_iam_role_policy": {
            "macadam": {
                "name_prefix": "macadam-objects-",
                "role": "${aws_iam_role.macadam.id}",
                "policy": _policy([objects]),
            }
        },
    }


def _policy(statements: list[Module]) -> str:
    """An IAM document as text, in which Terraform still fills in what it knows."""
    return msgspec.json.encode({"Version": "2012-10-17", "Statement": statements}).decode()


def _node_labels(pool: Pool) -> dict[str, str]:
    return {"macadam.local/pool": dns_label(pool.name), "macadam.local/spot": "true" if pool.spot else "false"}


# --- Google Cloud


def _gcp(pools: list[Pool]) -> Module:
    return {
        "terraform": {
            "required_version": ">= 1.5",
            "required_providers": {"google": {"source": "hashicorp/google", "version": ">= 6, < 8"}},
        },
        "provider": {"google": {"project": "${var.project}", "region": "${var.region}"}},
        "variable": {
            "project": _variable("string", "Id of the Google Cloud project"),
            "region": _variable("string", "Region of the bucket, such as europe-west4"),
            "location": _variable("string", "Region or zone of the cluster"),
            "cluster_name": _variable("string", "Name of the GKE cluster that exists, with Workload Identity"),
            "node_locations": _variable("list(string)", "Zones that have these GPUs"),
            "bucket_name": _variable("string", "Name of the bucket for objects and checkpoints: unique in all of GCS"),
            "service_account": _variable("string", "Macadam's service account, as NAMESPACE/NAME", "macadam/macadam"),
        },
        "resource": {
            "google_container_node_pool": {_label(pool.name): _gke_pool(pool) for pool in pools},
            **_gcp_bucket(),
            **_gcp_identity(),
        },
        "output": {
            "bucket": {"description": "Where objects go", "value": "${google_storage_bucket.macadam.url}"},
            "account": {
                "description": "For the service account's annotation",
                "value": "${google_service_account.macadam.email}",
            },
        },
    }


def _gcp_bucket() -> Module:
    bucket = {
        "name": "${var.bucket_name}",
        "location": "${var.region}",
        "uniform_bucket_level_access": True,
        "public_access_prevention": "enforced",
        "force_destroy": False,
        "versioning": {"enabled": True},
    }
    access = {
        "bucket": "${google_storage_bucket.macadam.name}",
        "role": "roles/storage.objectUser",
        "member": "serviceAccount:${google_service_account.macadam.email}",
    }
    return {
        "google_storage_bucket": {"macadam": bucket},
        "google_storage_bucket_iam_member": {"macadam": access},
    }


def _gcp_identity() -> Module:
    """Accounts of nodes and platform. Its pods act as theirs without a key (Workload Identity)."""
    nodes = {
        "project": "${var.project}",
        "role": "roles/container.defaultNodeServiceAccount",
        "member": "serviceAccount:${google_service_account.nodes.email}",
    }
    pods = {
        "service_account_id": "${google_service_account.macadam.name}",
        "role": "roles/iam.workloadIdentityUser",
        "member": "serviceAccount:${var.project}.svc.id.goog[${var.service_account}]",
    }
    return {
        "google_service_account": {
            "nodes": {"account_id": "macadam-gpu-nodes", "display_name": "GPU nodes of Macadam"},
            "macadam": {"account_id": "macadam-platform", "display_name": "Macadam"},
        },
        "google_project_iam_member": {"nodes": nodes},
        "google_service_account_iam_member": {"macadam": pods},
    }


def _gke_pool(pool: Pool) -> Module:
    config: Module = {
        "machine_type": pool.machine,
        "disk_size_gb": pool.disk,
        "spot": pool.spot,
        "service_account": "${google_service_account.nodes.email}",
        "oauth_scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        "labels": _node_labels(pool),
        "taint": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"}],
        "workload_metadata_config": {"mode": "GKE_METADATA"},
        "shielded_instance_config": {"enable_secure_boot": True, "enable_integrity_monitoring": True},
    }
    if pool.accelerator:
        driver = {"gpu_driver_version": "DEFAULT"}
        config["guest_accelerator"] = [
            {"type": pool.accelerator, "count": pool.per_node, "gpu_driver_installation_config": driver}
        ]
    return {
        "name": dns_label(pool.name, limit=40),
        "cluster": "${var.cluster_name}",
        "location": "${var.location}",
        "node_locations": "${var.node_locations}",
        "initial_node_count": pool.least,
        "autoscaling": {"total_min_node_count": pool.least, "total_max_node_count": pool.most},
        "management": {"auto_repair": True, "auto_upgrade": True},
        "node_config": config,
        "lifecycle": {"ignore_changes": ["initial_node_count"]},
    }
