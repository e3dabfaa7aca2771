"""A home with one deployed model of 20 inputs, made without training through the platform: a state for the gateway."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import skl2onnx
import skl2onnx.common.data_types as onnx_types
import sklearn.ensemble

from macadam.app.platform import LOCAL_TOKEN, Platform
from macadam.models import artifact as artifacts
from macadam.models import signature as signatures
from macadam.models import signing
from macadam.models.signature import Input, Output, Signature
from macadam.serving import publishing, state
from macadam.serving.types import Deployment
from macadam.settings import Settings
from macadam.values import utc_now, uuid7

PROJECT, ENDPOINT = "bench", "delay"
PATH = f"/v1/projects/{PROJECT}/endpoints/{ENDPOINT}/predict"
NAMES = tuple(f"f{n}" for n in range(20))
BODY = json.dumps({"inputs": {name: round(0.05 * n - 0.5, 3) for n, name in enumerate(NAMES)}})


def model() -> bytes:
    """50 trees of depth 4 on 20 inputs, as ONNX."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4000, len(NAMES))).astype(np.float32)
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)
    ensemble: Any = sklearn.ensemble
    types: Any = onnx_types
    export: Any = skl2onnx
    fitted = ensemble.GradientBoostingClassifier(n_estimators=50, max_depth=4).fit(rows, labels)
    kind = [("features", types.FloatTensorType([None, len(NAMES)]))]
    exported = export.to_onnx(fitted, initial_types=kind, options={"zipmap": False})
    data: bytes = exported.SerializeToString()
    return data


def furnish(home: Path, onnx: bytes) -> str:
    """Makes the home and returns a token."""
    outputs = (Output(name="score", kind="probability", tensor="probabilities", column=1),)
    signature = Signature(inputs=tuple(Input(name=n, kind="number") for n in NAMES), outputs=outputs)
    with Platform(Settings.load({}, home=home)) as platform:
        objects = platform.ports.objects
        key = signing.new_key()
        artifact, schema = objects.put(onnx), objects.put(signatures.to_bytes(signature))
        signed = signing.sign(signing.statement_of("delay", artifacts.files(artifact, schema)), key)
        one = Deployment(
            id=uuid7(),
            project=PROJECT,
            endpoint=ENDPOINT,
            model="delay",
            number=1,
            version="model:delay@1",
            artifact=artifact,
            signature=schema,
            model_signature=objects.put(signed),
            service=None,
            threshold=0.5,
            replaced="",
            actor="principal:local",
            at=utc_now(),
        )
        with platform.ports.sql.read() as sql:
            built = publishing.build(sql)
        token = platform.ports.secrets.get(LOCAL_TOKEN).decode()
    whole = msgspec.structs.replace(built, endpoints={PROJECT: {ENDPOINT: one}}, model_keys=(signing.public_key(key),))
    objects.set_name(state.NAME, state.encode(whole))
    return token


def request(token: str = "") -> bytes:
    """A prediction's HTTP request."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([*lines, f"Content-Length: {len(BODY)}", "", BODY]).encode()
