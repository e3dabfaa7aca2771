"""Executors on clusters for the behaviour suite: each test gets its own stand-in of a Kubernetes cluster."""

import datetime as dt
import hashlib
import ipaddress
import os
from functools import cache
from pathlib import Path

import pytest
from contract.api_server import TOKEN, Cluster, Server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from macadam.adapters.kubernetes_api import Access, KubernetesApi
from macadam.adapters.kubernetes_executor import KubernetesExecutor
from macadam.adapters.local_objects import LocalObjects
from macadam.adapters.ray_executor import RayExecutor
from macadam.compute.jobs.attempt_objects import AttemptObjects, Site

_RUN = os.urandom(8)  # a Ray cluster may serve several runs of the tests
_running: dict[Path, tuple[Cluster, Server]] = {}


@cache
def certificate() -> tuple[str, str]:
    """A certificate for 127.0.0.1 that is its own authority, and its key (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return pem, key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def cluster(place: Path) -> tuple[Cluster, Server]:
    """The stand-in of a test, started at first asking."""
    if place not in _running:
        pair = place / "pair.pem"
        pair.write_text("".join(certificate()))
        disk = place / "cluster"
        disk.mkdir()
        made = Cluster(disk)
        made.put("nodes", node("here"))
        _running[place] = made, Server(made, pair)
    return _running[place]


def node(name: str, **allocatable: str) -> dict[str, object]:
    room = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "100Gi", "pods": "110"} | allocatable
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def kubernetes(place: Path) -> KubernetesExecutor:
    _, server = cluster(place)
    api = KubernetesApi(Access(server=server.url, authority=certificate()[0], token=TOKEN))
    render = AttemptObjects(Site(image="registry.example/python:3.12"))
    return KubernetesExecutor(api, render, LocalObjects(place / "objects"), place / "kept")


RAY = os.environ.get("MACADAM_TEST_RAY", "")


def ray(place: Path) -> RayExecutor:
    """On a real cluster, whose dashboard MACADAM_TEST_RAY names. Its nodes are its own, so nothing is pinned."""
    if not RAY:
        pytest.skip("MACADAM_TEST_RAY names no Ray cluster; `make test-ray` starts one")
    prefix = hashlib.sha256(str(place).encode() + _RUN).hexdigest()[:12] + "-"
    checkpoints = str(place / "checkpoints")
    return RayExecutor(RAY, LocalObjects(place / "objects"), checkpoints=checkpoints, pin=False, prefix=prefix)


def end(place: Path) -> None:
    """Ends the stand-in of a test, if it had one."""
    if place in _running:
        made, server = _running.pop(place)
        server.close()
        made.close()
