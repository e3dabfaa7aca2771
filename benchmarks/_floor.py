"""The floors of the gateway's benchmark: the same ONNX model behind a bare server; no validation, no identity, no record.

MODEL names the ONNX file. `rsgi` is for Granian, `asgi` for uvicorn.
"""

import os
from typing import Any

import msgspec
import numpy as np
import onnxruntime


class Body(msgspec.Struct):
    inputs: dict[str, float]


ort: Any = onnxruntime
_options = ort.SessionOptions()
_options.intra_op_num_threads = 1
_session = ort.InferenceSession(os.environ["MODEL"], _options, providers=["CPUExecutionProvider"])
_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode


def predict(body: bytes) -> bytes:
    row = np.array([list(_decode(body).inputs.values())], dtype=np.float32)
    found: Any = _session.run(["probabilities"], {"features": row})[0]
    return _encode({"score": float(found[0, 1])})


async def rsgi(_scope: Any, proto: Any) -> None:
    proto.response_bytes(200, [("content-type", "application/json")], predict(await proto()))


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    answer = predict(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
