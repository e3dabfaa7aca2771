"""Gets text and answers over HTTP from exporters and from Prometheus, with a limit on time and on size."""

import ipaddress
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from macadam.compute.telemetry import dcgm, exposition, remote_read
from macadam.compute.telemetry.dcgm import Problems, Translator
from macadam.compute.telemetry.types import Sample
from macadam.errors import InvalidInput, SourceInvalid, TooLarge, Unavailable
from macadam.lazy import lazy

if TYPE_CHECKING:
    import httpx
else:
    httpx = lazy("httpx")

_OK = 200


class Exporter:
    """One dcgm-exporter. Close it, or use it as a context manager."""

    def __init__(self, url: str, *, timeout: float, transport: "httpx.BaseTransport | None" = None) -> None:
        """timeout: s for all of a scrape. Raises InvalidInput for what is no URL of http(s)."""
        self.url = checked(url)
        self._client, self._timeout = client(timeout, transport), timeout
        self._parser = exposition.Parser()
        self._translator = Translator(source="dcgm", node=_host(url))

    def read(self, now: datetime) -> tuple[list[Sample], Problems]:
        """Raises Unavailable, SourceInvalid, TooLarge."""
        asked = httpx.Request("GET", self.url, headers={"Accept-Encoding": "gzip"})
        body, _ = _body(self._client, asked, exposition.MOST_BYTES, self._timeout)
        scrape = self._parser.parse(body)
        found, problems = self._translator.samples(scrape.readings, now=now)
        for line in scrape.named:
            problems.add(f"line {line.number}: {line.why}: {line.text!r}")
        problems.count += scrape.malformed - len(scrape.named)
        return found, problems

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def history(
    url: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    timeout: float,
    transport: "httpx.BaseTransport | None" = None,
) -> tuple[list[Sample], Problems]:
    """What a Prometheus remembers of dcgm-exporters between two instants. Raises Unavailable, SourceInvalid, TooLarge."""
    matchers = [remote_read.any_of(dcgm.FIELDS)]
    with client(timeout, transport) as opened:
        asked = httpx.Request(
            "POST", checked(url), content=remote_read.request(start, end, matchers), headers=remote_read.HEADERS
        )
        body, content_type = _body(opened, asked, remote_read.MOST_BYTES, timeout)
    read = remote_read.readings(body, content_type, start, end)
    return Translator(source="prometheus").samples(read, now=now, live=False)


def client(timeout: float, transport: "httpx.BaseTransport | None") -> "httpx.Client":
    # No redirects: an exporter that sends us elsewhere is not the one that was named.
    return httpx.Client(timeout=timeout, transport=transport, follow_redirects=False)


def checked(url: str) -> str:
    """Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise InvalidInput(f"{url[:200]!r} is no URL of http or https.", next_step="Write http://HOST:9400/metrics.")
    return url


def _body(opened: "httpx.Client", request: "httpx.Request", most: int, timeout: float) -> tuple[bytes, str]:
    """Body as it came (an answer compressed for transport is undone) and its type. timeout: s for all of it."""
    where = f"{request.url.host}:{request.url.port or ''}"
    limit = time.monotonic() + timeout
    try:
        answer = opened.send(request, stream=True)
        try:
            if answer.status_code != _OK:
                raise SourceInvalid(
                    f"{where} answered with status {answer.status_code}.", next_step=f"Look at {request.url.path}."
                )
            unpack, body = _unpacker(where, answer.headers.get("content-encoding", "")), bytearray()
            for piece in answer.iter_raw():
                body += unpack(piece, most + 1 - len(body))
                if len(body) > most:
                    raise TooLarge(f"{where} answered with more than {most} bytes.", next_step="Ask for less at once.")
                if time.monotonic() > limit:
                    raise Unavailable(
                        f"{where} had not answered whole after {timeout:g} s.", next_step=f"Try: curl {request.url}"
                    )
            unpack(b"", 1)
            return bytes(body), answer.headers.get("content-type", "")
        finally:
            answer.close()
    except httpx.HTTPError as error:
        raise Unavailable(
            f"{where} cannot be read: {type(error).__name__} {error}.", next_step=f"Try: curl {request.url}"
        ) from error


def _unpacker(where: str, encoding: str) -> "Callable[[bytes, int], bytes]":
    """Undoes an answer's compression, piece by piece and never past a length; an empty piece asks whether it was whole.

    Ours and not httpx's: that unpacks a piece whole, codings within codings too, before its length can be looked at.
    """
    # Snappy is the message's own encoding.
    if encoding.strip().lower() in ("", "identity", "snappy"):
        return lambda piece, _most: piece
    if encoding.strip().lower() != "gzip":
        raise SourceInvalid(
            f"{where} answered in the encoding {encoding[:60]!r}.", next_step="Have it use gzip, or none."
        )
    inflater = zlib.decompressobj(wbits=31)

    def unpack(piece: bytes, most: int) -> bytes:
        try:
            found = inflater.decompress(piece, most)
        except zlib.error as error:
            raise SourceInvalid(f"{where} answered with broken gzip: {error}.", next_step="Look at it.") from error
        if not piece and not inflater.eof:
            raise SourceInvalid(f"{where} answered with gzip that ends too early.", next_step="Ask it again.")
        return found

    return unpack


def _host(url: str) -> str:
    """The machine, for exporters that do not name it. '' where the URL has only an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return "" if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return "" if host == "localhost" else host
