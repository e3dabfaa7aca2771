"""The tree against RFC 9162's own definitions, the well-known eight leaves, and the laws of its proofs."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macadam.errors import IntegrityError, InvalidInput
from macadam.ledger import tree

# The vectors of certificate-transparency-go and most other implementations: leaves, then the root after each.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
HASHES = [tree.leaf_hash(leaf) for leaf in LEAVES]


def numbered(count: int) -> list[bytes]:
    return [tree.leaf_hash(number.to_bytes(4)) for number in range(count)]


LARGEST = 300
ALL = numbered(LARGEST + 1)
READ = tree.hashes_of(ALL)
ROOT_AT = [tree.root_of(ALL[:size]) for size in range(LARGEST + 1)]


def rfc_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return tree.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return tree.node_hash(rfc_root(leaves[:k]), rfc_root(leaves[k:]))


def rfc_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of RFC 9162, 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if index < k:
        return [*rfc_path(index, leaves[:k]), rfc_root(leaves[k:])]
    return [*rfc_path(index - k, leaves[k:]), rfc_root(leaves[:k])]


def rfc_subproof(old: int, leaves: Sequence[bytes], *, known: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162, 2.1.4.1, word for word."""
    if old == len(leaves):
        return [] if known else [rfc_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if old <= k:
        return [*rfc_subproof(old, leaves[:k], known=known), rfc_root(leaves[k:])]
    return [*rfc_subproof(old - k, leaves[k:], known=False), rfc_root(leaves[:k])]


@pytest.mark.parametrize("size", range(9))
def test_the_well_known_roots_of_eight_leaves(size: int) -> None:
    assert tree.root_of(HASHES[:size]).hex() == ROOTS[size]
    assert tree.root_at(size, tree.hashes_of(HASHES)).hex() == ROOTS[size]
    assert rfc_root(HASHES[:size]).hex() == ROOTS[size]


def test_the_well_known_paths() -> None:
    read = tree.hashes_of(HASHES)
    assert [h.hex()[:8] for h in tree.inclusion_proof(0, 8, read)] == ["96a296d2", "5f083f0a", "6b47aaf2"]
    assert [h.hex()[:8] for h in tree.inclusion_proof(5, 8, read)] == ["bc1a0643", "ca854ea1", "d37ee418"]
    assert [h.hex()[:8] for h in tree.inclusion_proof(2, 3, read)] == ["fac54203"]
    assert [h.hex()[:8] for h in tree.consistency_proof(1, 8, read)] == ["96a296d2", "5f083f0a", "6b47aaf2"]
    assert [h.hex()[:8] for h in tree.consistency_proof(6, 8, read)] == ["0ebc5d34", "ca854ea1", "d37ee418"]


def test_the_example_of_the_rfc() -> None:
    """RFC 9162, 2.1.5: the tree of seven leaves, its nodes named as there."""
    a, b, c, d, e, f, j = HASHES[:7]
    g, h, i = tree.node_hash(a, b), tree.node_hash(c, d), tree.node_hash(e, f)
    k, l = tree.node_hash(g, h), tree.node_hash(i, j)  # noqa: E741 - the RFC's name
    assert tree.root_of(HASHES[:7]) == tree.node_hash(k, l)
    read = tree.hashes_of(HASHES[:7])
    assert tree.inclusion_proof(0, 7, read) == [b, h, l]
    assert tree.inclusion_proof(3, 7, read) == [c, g, l]
    assert tree.inclusion_proof(4, 7, read) == [f, j, k]
    assert tree.inclusion_proof(6, 7, read) == [i, k]
    assert tree.consistency_proof(3, 7, read) == [c, d, g, l]
    assert tree.consistency_proof(4, 7, read) == [l]
    assert tree.consistency_proof(6, 7, read) == [i, j, k]


@pytest.mark.parametrize("sizes", [range(low, low + 30) for low in range(1, LARGEST, 30)], ids=str)
def test_every_leaf_of_every_size_up_to_300_proves(sizes: range) -> None:
    for size in sizes:
        root = ROOT_AT[size]
        for index in range(size):
            path = tree.inclusion_proof(index, size, READ)
            tree.verify_inclusion(ALL[index], index, size, path, root)
            with pytest.raises(IntegrityError):
                tree.verify_inclusion(ALL[index], (index + 1) % (size + 1), size, path, root)


@pytest.mark.parametrize("sizes", [range(low, low + 30) for low in range(1, LARGEST, 30)], ids=str)
def test_every_older_tree_is_consistent_with_every_newer_up_to_300(sizes: range) -> None:
    for new in sizes:
        for old in range(new + 1):
            proof = tree.consistency_proof(old, new, READ)
            tree.verify_consistency(old, ROOT_AT[old], new, ROOT_AT[new], proof)
            with pytest.raises(IntegrityError):
                tree.verify_consistency(old, ALL[LARGEST], new, ROOT_AT[new], proof)
            with pytest.raises(IntegrityError):
                tree.verify_consistency(old, ROOT_AT[old], new, ROOT_AT[new], [*proof, ALL[0]])


def bent(data: st.DataObject, proof: list[bytes]) -> list[bytes]:
    """Another proof: with a changed, a further, a missing or a moved step."""
    place = data.draw(st.integers(0, max(len(proof) - 1, 0)))
    how = data.draw(st.sampled_from(["further", "changed", "missing", "turned"] if proof else ["further"]))
    if how == "further":
        return [*proof[:place], data.draw(st.sampled_from([*ALL[:3], *proof])), *proof[place:]]
    if how == "changed":
        step = bytearray(proof[place])
        step[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
        return [*proof[:place], bytes(step), *proof[place + 1 :]]
    return [*proof[:place], *proof[place + 1 :]] if how == "missing" else proof[::-1]


@given(st.data())
def test_no_other_inclusion_proof_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion_proof(index, size, READ)
    tree.verify_inclusion(ALL[index], index, size, proof, ROOT_AT[size])
    other = bent(data, proof)
    if other != proof:
        with pytest.raises(IntegrityError):
            tree.verify_inclusion(ALL[index], index, size, other, ROOT_AT[size])
    elsewhere = data.draw(st.integers(0, size - 1).filter(lambda n: n != index)) if size > 1 else 1
    with pytest.raises((IntegrityError, InvalidInput)):
        tree.verify_inclusion(ALL[index], elsewhere, size, proof, ROOT_AT[size])
    another = data.draw(st.integers(1, LARGEST).filter(lambda n: n != size))
    with pytest.raises((IntegrityError, InvalidInput)):
        tree.verify_inclusion(ALL[index], index, another, proof, ROOT_AT[another])


@given(st.data())
def test_no_other_consistency_proof_verifies(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, LARGEST))
    old = data.draw(st.integers(1, new - 1))
    proof = tree.consistency_proof(old, new, READ)
    tree.verify_consistency(old, ROOT_AT[old], new, ROOT_AT[new], proof)
    other = bent(data, proof)
    if other != proof:
        with pytest.raises(IntegrityError):
            tree.verify_consistency(old, ROOT_AT[old], new, ROOT_AT[new], other)
    older = data.draw(st.integers(1, new - 1).filter(lambda n: n != old)) if new > 2 else 2
    with pytest.raises((IntegrityError, InvalidInput)):
        tree.verify_consistency(older, ROOT_AT[old], new, ROOT_AT[new], proof)
    forked = [*ALL[: old - 1], ALL[LARGEST], *ALL[old:new]]
    with pytest.raises(IntegrityError):
        tree.verify_consistency(old, ROOT_AT[old], new, tree.root_of(forked), proof)


@settings(deadline=None)
@given(st.data())
def test_proofs_equal_the_recursive_definitions_of_the_rfc(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    assert tree.inclusion_proof(index, size, READ) == rfc_path(index, ALL[:size])
    expected = [] if old == size else rfc_subproof(old, ALL[:size], known=True)
    assert tree.consistency_proof(old, size, READ) == expected


@settings(deadline=None)
@given(st.data())
def test_random_large_trees_prove_inclusion_and_consistency(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 20_000))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    read = tree.hashes_of(LARGE[:size])
    root = tree.root_at(size, read)
    path = tree.inclusion_proof(index, size, read)
    tree.verify_inclusion(LARGE[index], index, size, path, root)
    proof = tree.consistency_proof(old, size, read)
    tree.verify_consistency(old, tree.root_at(old, read), size, root, proof)
    broken = data.draw(st.integers(0, len(path) - 1))
    path[broken] = tree.leaf_hash(path[broken])
    with pytest.raises(IntegrityError):
        tree.verify_inclusion(LARGE[index], index, size, path, root)
    if proof:
        proof[broken % len(proof)] = bytes(32)
        with pytest.raises(IntegrityError):
            tree.verify_consistency(old, tree.root_at(old, read), size, root, proof)


LARGE = numbered(20_000)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 100])
def test_a_path_of_the_wrong_length_is_refused(size: int) -> None:
    path = tree.inclusion_proof(size - 1, size, READ)
    with pytest.raises(IntegrityError, match="too long"):
        tree.root_from_path(ALL[size - 1], size - 1, size, [*path, ALL[0]])
    if path:
        with pytest.raises(IntegrityError, match="too short"):
            tree.root_from_path(ALL[size - 1], size - 1, size, path[:-1])


def test_what_is_outside_the_tree_is_refused() -> None:
    with pytest.raises(InvalidInput):
        tree.inclusion_proof(8, 8, READ)
    with pytest.raises(InvalidInput):
        tree.consistency_proof(9, 8, READ)
    with pytest.raises(IntegrityError, match="shrank"):
        tree.verify_consistency(9, ROOT, 8, ROOT, [])
    with pytest.raises(IntegrityError, match="empty"):
        tree.verify_consistency(3, ROOT, 8, ROOT, [])


ROOT = bytes(32)


@given(st.lists(st.integers(0, 40), max_size=6))
def test_a_frontier_grown_in_batches_has_the_root_of_the_whole(batches: list[int]) -> None:
    frontier = tree.Frontier()
    for batch in batches:
        frontier.extend(LARGE[frontier.size : frontier.size + batch])
        frontier = tree.Frontier.from_bytes(frontier.to_bytes())
    assert frontier.size == sum(batches)
    assert frontier.root() == rfc_root(LARGE[: frontier.size])
    assert frontier.hashes == tree.Frontier.of(frontier.size, tree.hashes_of(LARGE)).hashes


def test_a_copied_frontier_grows_on_its_own() -> None:
    frontier = tree.Frontier()
    frontier.append(ALL[0])
    tried = frontier.copy()
    tried.append(ALL[1])
    assert (frontier.size, frontier.root()) == (1, ALL[0])
    assert tried.root() == tree.root_of(ALL[:2])


@pytest.mark.parametrize("state", [b"", bytes(7), (1).to_bytes(8), (2).to_bytes(8) + bytes(31), bytes(8 + 32)])
def test_a_damaged_frontier_is_refused(state: bytes) -> None:
    with pytest.raises(IntegrityError):
        tree.Frontier.from_bytes(state)


def test_a_leaf_hash_of_the_wrong_length_is_refused_and_the_frontier_stays_whole() -> None:
    frontier = tree.Frontier()
    with pytest.raises(InvalidInput):
        frontier.extend([ALL[0], ALL[1], ALL[2], b"short"])
    assert frontier.size == 3
    assert frontier.root() == tree.root_of(ALL[:3])


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (tree.Tile(level=0, index=0), "tile/0/000"),
        (tree.Tile(level=0, index=0, width=5), "tile/0/000.p/5"),
        (tree.Tile(level=3, index=1234067), "tile/3/x001/x234/067"),
        (tree.Tile(level=0, index=1000, width=255), "tile/0/x001/000.p/255"),
        (tree.Tile(level=63, index=999), "tile/63/999"),
    ],
)
def test_tile_paths_follow_tlog_tiles(tile: tree.Tile, path: str) -> None:
    assert tile.path == path
    assert tree.Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/00",
        "tile/00/000",
        "tile/64/000",
        "tile/0/x000/001",
        "tile/0/001/000",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/0/000.p/05",
        "tile/0/000\n",
        "tile/0/\u0660\u0660\u0660",
        "tile/-1/000",
    ],
)
def test_a_path_that_is_not_the_one_spelling_of_a_tile_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        tree.Tile.parse(path)


def test_a_tile_that_cannot_be_is_not_built() -> None:
    with pytest.raises(InvalidInput):
        tree.Tile(level=0, index=0, width=257)


def test_changed_tiles_names_full_and_partial_tiles() -> None:
    assert tree.changed_tiles(5, 5) == []
    assert tree.changed_tiles(0, 1) == [tree.Tile(level=0, index=0, width=1)]
    assert [tile.path for tile in tree.changed_tiles(255, 257)] == [
        "tile/0/000",
        "tile/0/001.p/1",
        "tile/1/000.p/1",
    ]
    assert [tile.path for tile in tree.changed_tiles(256, 257)] == ["tile/0/001.p/1"]
    assert [tile.path for tile in tree.changed_tiles(70_000 - 1, 70_000)] == ["tile/0/273.p/112"]
    assert [tile.path for tile in tree.changed_tiles(65_535, 65_536)] == [
        "tile/0/255",
        "tile/1/000",
        "tile/2/000.p/1",
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.data())
def test_tiles_grown_in_batches_hold_every_hash_and_prove_every_leaf(batches: list[int], data: st.DataObject) -> None:
    tiles: dict[tree.Tile, bytes] = {}
    size = 0
    for batch in batches:
        grown = tree.grow_tiles(size, LARGE[size : size + batch], tiles.__getitem__)
        assert [tile for tile, _ in grown] == tree.changed_tiles(size, size + batch)
        tiles.update(grown)
        size += batch
    whole = tree.hashes_of(LARGE[:size])
    for tile, content in tiles.items():
        assert content == tree.tile_content(tile, whole)
    read = tree.TileHashes(tiles.__getitem__).at(size)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert tree.root_at(size, read) == tree.root_of(LARGE[:size])
    assert tree.inclusion_proof(index, size, read) == tree.inclusion_proof(index, size, whole)
    assert tree.consistency_proof(old, size, read) == tree.consistency_proof(old, size, whole)


def test_tile_hashes_serve_a_growing_tree_and_accept_wider_tiles() -> None:
    content = b"".join(LARGE[:200])
    hashes = tree.TileHashes(lambda _: content)
    for size in (1, 100, 200):
        assert tree.root_at(size, hashes.at(size)) == tree.root_of(LARGE[:size])


def test_a_third_level_of_tiles_is_written_and_read() -> None:
    leaves = numbered(65_536 + 3)
    tiles = dict(tree.grow_tiles(0, leaves, lambda _: b""))
    assert list(tiles) == tree.changed_tiles(0, len(leaves))
    read = tree.TileHashes(tiles.__getitem__).at(len(leaves))
    root = tree.root_of(leaves)
    assert tree.root_at(len(leaves), read) == root
    for index in (0, 65_535, 65_538):
        tree.verify_inclusion(leaves[index], index, len(leaves), tree.inclusion_proof(index, len(leaves), read), root)


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(32 * 4 + 1)])
def test_a_tile_of_the_wrong_length_is_reported(content: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"tile/0/000\.p/3"):
        tree.root_at(3, tree.TileHashes(lambda _: content).at(3))


def test_a_hash_that_is_not_complete_yet_is_refused() -> None:
    with pytest.raises(InvalidInput):
        tree.TileHashes(lambda _: bytes(96)).at(3)(1, 1)
