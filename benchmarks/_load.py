"""Load on an HTTP server: wrk where it is installed, else a small client of our own (slower: ratios hold, rates less)."""

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """p99: milliseconds."""

    rate: float
    p99: float
    errors: int


def run(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    """request: a whole HTTP request, sent again as soon as it is answered."""
    if shutil.which("wrk"):
        return _wrk(host, port, request, connections, seconds)
    return asyncio.run(_own(host, port, request, connections, seconds))


def _wrk(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    # JSON's escapes are Lua's too; Lua's long brackets would turn CRLF into LF.
    script = f"local r = {json.dumps(request.decode('ascii'))}\nrequest = function() return r end\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.lua"
        path.write_text(script, encoding="utf-8")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(path)]
        done = subprocess.run([*command, f"http://{host}:{port}/"], capture_output=True, text=True, check=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)
    if rate is None or p99 is None:
        raise RuntimeError(f"wrk said: {done.stdout}{done.stderr}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return Load(rate=float(rate[1]), p99=float(p99[1]) * scale, errors=int(bad[1]) if bad else 0)


async def _own(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    end = time.perf_counter() + seconds
    spent: list[float] = []
    errors = 0

    async def one() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(host, port)
        while (begin := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            spent.append(time.perf_counter() - begin)
            errors += b" 200 " not in head[:16]
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    spent.sort()
    return Load(rate=len(spent) / seconds, p99=spent[int(len(spent) * 0.99)] * 1000, errors=errors)
