"""The ledger over HTTP for a client that knows the public specification and nothing of Macadam.

`Client` is written from https://c2sp.org/tlog-tiles and RFC 6962 with HTTP and hashlib alone.
"""

import base64
import gzip
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from unit.ledger.worlds import queue

from macadam.access.types import CreateProject
from macadam.app.platform import Platform
from macadam.ledger.sequencer import integrate_all
from macadam.settings import Server, Settings
from macadam.testing import Http, Reply, local_token, open_platform, token_of

Fetch = Callable[[str], bytes]


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Client:
    """fetch: path below the log's prefix → bytes."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch

    def checkpoint(self) -> tuple[int, bytes]:
        _origin, size, root, *_ = self.fetch("checkpoint").decode().split("\n")
        return int(size), base64.b64decode(root)

    def number(self, index: int) -> str:
        groups = [f"{index % 1000:03d}"]
        while index := index // 1000:
            groups.insert(0, f"x{index % 1000:03d}")
        return "/".join(groups)

    def hashes(self, level: int, size: int) -> list[bytes]:
        """All hashes at a tile level of the tree of this size."""
        count = size >> 8 * level
        found: list[bytes] = []
        for index in range(0, count, 256):
            width = min(256, count - index)
            partial = "" if width == 256 else f".p/{width}"
            tile = self.fetch(f"tile/{level}/{self.number(index // 256)}{partial}")
            assert len(tile) == 32 * width
            found += [tile[at : at + 32] for at in range(0, len(tile), 32)]
        return found

    def entries(self, size: int) -> list[bytes]:
        found: list[bytes] = []
        for index in range(0, size, 256):
            width = min(256, size - index)
            bundle = self.fetch(f"tile/entries/{self.number(index // 256)}{'' if width == 256 else f'.p/{width}'}")
            at = 0
            while at < len(bundle):
                length = int.from_bytes(bundle[at : at + 2])
                found.append(bundle[at + 2 : at + 2 + length])
                at += 2 + length
        return found

    def root(self, hashes: list[bytes]) -> bytes:
        """MTH of RFC 6962, 2.1, over leaf hashes."""
        if len(hashes) == 1:
            return hashes[0]
        split = 1 << (len(hashes) - 1).bit_length() - 1
        return node(self.root(hashes[:split]), self.root(hashes[split:]))

    def includes(self, hashes: list[bytes], index: int, leaf: bytes, root: bytes) -> bool:
        """PATH(m, D[n]) of RFC 6962, 2.1.1, made from the tiles and followed from the leaf."""

        def climb(part: list[bytes], at: int) -> bytes:
            if len(part) == 1:
                return sha256(b"\x00" + leaf).digest()
            split = 1 << (len(part) - 1).bit_length() - 1
            if at < split:
                return node(climb(part[:split], at), self.root(part[split:]))
            return node(self.root(part[:split]), climb(part[split:], at - split))

        return climb(hashes, index) == root


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Platform]:
    with open_platform(tmp_path / "home") as opened:
        opened.call(CreateProject(project="flights"))
        yield opened


@pytest.fixture
def http(home: Platform) -> Iterator[Http]:
    with Http(home) as face:
        yield face


def grow(home: Platform, by: int) -> None:
    queue(home.ports, by)
    integrate_all(home.ports)


def getter(http: Http, token: str = "") -> Fetch:
    def fetch(path: str) -> bytes:
        reply = http.request("GET", f"/ledger/{path}", token=token)
        assert reply.status == 200, (path, reply.body)
        return reply.body

    return fetch


def test_any_client_of_a_tiled_log_checks_the_tree_its_entries_and_its_growth(home: Platform, http: Http) -> None:
    client, reader = Client(getter(http)), Client(getter(http, local_token(home)))
    grow(home, 300)
    size, root = client.checkpoint()
    hashes = client.hashes(0, size)
    assert client.root(hashes) == root
    entries = reader.entries(size)
    assert [sha256(b"\x00" + entry).digest() for entry in entries] == hashes
    assert all(client.includes(hashes, index, entry, root) for index, entry in enumerate(entries[:40]))
    assert not client.includes(hashes, 0, entries[1], root)
    for step in (1, 200, 700):  # partial tiles that widen, and one that becomes full
        grow(home, step)
        larger, newer = client.checkpoint()
        assert larger >= size + step
        grown = client.hashes(0, larger)
        assert client.root(grown) == newer
        assert client.root(grown[:size]) == root  # consistency, from tiles alone
    upper = client.hashes(1, larger)
    assert upper == [client.root(grown[at : at + 256]) for at in range(0, larger - 255, 256)]


def test_a_partial_tile_of_an_older_checkpoint_is_served_after_the_tile_became_full(home: Platform, http: Http) -> None:
    grow(home, 100)
    size, root = Client(getter(http)).checkpoint()
    grow(home, 300)
    assert Client(getter(http)).root(Client(getter(http)).hashes(0, size)) == root


def test_leaves_need_the_right_to_read_the_whole_ledger_and_hashes_need_none(home: Platform, http: Http) -> None:
    grow(home, 300)
    viewer = token_of(home, "principal:viewer", {"*": "viewer"})
    one = token_of(home, "principal:one", {"flights": "viewer"})

    def status(path: str, token: str) -> int:
        return http.request("GET", f"/ledger/{path}", token=token).status

    assert [status("tile/entries/000", token) for token in ("", "wrong", one, viewer)] == [401, 401, 403, 200]
    assert [status(path, "") for path in ("checkpoint", "tile/0/000", "tile/1/000.p/1")] == [200, 200, 200]


def test_a_home_may_keep_its_tiles_to_its_readers(tmp_path: Path) -> None:
    settings = Settings.load({"MACADAM_OPEN_TILES": "0"}, home=tmp_path / "home")
    with Platform(settings) as closed, Http(closed) as http:
        integrate_all(closed.ports)
        token = local_token(closed)
        size, _ = Client(getter(http, token)).checkpoint()
        tile = f"tile/0/000.p/{size}"
        assert Server().open_tiles
        for path in ("checkpoint", tile):
            assert http.request("GET", f"/ledger/{path}").status == 401
            assert http.request("GET", f"/ledger/{path}", token=token).status == 200
        assert "private" in http.request("GET", f"/ledger/{tile}", token=token).headers["cache-control"]


def test_tiles_may_be_kept_for_ever_and_checkpoints_and_refusals_not_at_all(home: Platform, http: Http) -> None:
    grow(home, 300)

    def said(path: str, token: str = "") -> tuple[str, str]:
        reply = http.request("GET", f"/ledger/{path}", token=token)
        return reply.headers["content-type"], reply.headers["cache-control"]

    assert said("checkpoint") == ("text/plain; charset=utf-8", "no-store")
    assert said("tile/0/000") == ("application/octet-stream", "public, max-age=31536000, immutable")
    assert said("tile/entries/000", local_token(home))[1] == "private, max-age=31536000, immutable"
    assert said("tile/0/001")[1] == "no-store"
    head = http.request("HEAD", "/ledger/tile/0/000")
    assert (head.status, head.headers["content-length"], head.body) == (200, "8192", b"")
    assert http.request("POST", "/ledger/checkpoint").status == 405


def test_bundles_are_compressed_for_those_who_take_gzip(home: Platform, http: Http) -> None:
    grow(home, 300)
    token = local_token(home)

    def bundle(accepts: str) -> Reply:
        return http.request("GET", "/ledger/tile/entries/000", token=token, headers={"accept-encoding": accepts})

    plain, packed = bundle("identity"), bundle("br, gzip;q=0.8")
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["content-encoding"] == "gzip"
    assert bundle("gzip;q=0").body == plain.body
    assert {reply.headers["vary"] for reply in (plain, packed)} == {"accept-encoding"}


NO_TILES = [
    "",
    "key",
    "tile/0/0",
    "tile/00/000",
    "tile/64/000",
    "tile/0/x000/000",
    "tile/0/000.p/0",
    "tile/0/000.p/256",
    "tile/0/000.p/01",
    "tile/0/000/",
    "tile/0/001.p/200",
    "tile/0/x001/000",
    "tile/0/" + "x999/" * 500 + "999",
    "tile/5/000.p/1",
    "tile/0/../../../keys/ledger-key",
    "tile/0/..%2f..%2fkeys",
    "tile/0/%30%30%30",
    "../macadam.sqlite",
    "tile/entries/../0/000",
    "tile/entries/001.p/200",
    "tile/entries/x000/000",
]


def test_what_is_no_tile_of_the_ledger_is_not_found(home: Platform, http: Http) -> None:
    grow(home, 300)
    token = local_token(home)
    assert [path for path in NO_TILES if http.request("GET", f"/ledger/{path}", token=token).status != 404] == []


def test_a_tile_that_no_checkpoint_covers_yet_is_not_served(home: Platform, http: Http) -> None:
    grow(home, 10)
    size, _ = Client(getter(http)).checkpoint()
    ahead = f"tile/0/000.p/{size + 1}"
    home.ports.objects.set_name(f"ledger/{ahead}", bytes(32 * (size + 1)))  # what an interrupted integration leaves
    assert http.request("GET", f"/ledger/{ahead}").status == 404
