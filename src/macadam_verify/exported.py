"""Checks a copy of a whole ledger (format macadam-ledger/1), as `macadam ledger export` writes it.

One pass, line by line, in memory that does not grow with the ledger: every leaf is hashed into the tree, every signed
checkpoint must have the root of the leaves before it, and keys take over only by leaves that trusted keys have signed.
A copy made for one project holds the other leaves as hashes; the tree is the same.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from macadam_verify.signed import (
    Broken,
    Report,
    Trust,
    Unreadable,
    canonical,
    checkpoint,
    expect,
    read_json,
    sha256,
)

FORMAT = "macadam-ledger/1"
LONGEST_LINE = 1_000_000
"""Bytes. A leaf has at most 65,535, each of which JSON may escape to six."""
HEADER = {"format": str, "key": str, "project": str, "size": int}
LEAF = {"kind": str, "outcome": str, "subject": str, "body": dict}
_HASH = re.compile("[0-9a-f]{64}")


class Tree:
    """The roots of the complete subtrees that `size` leaves fall into, largest first (RFC 9162, 2.1)."""

    def __init__(self) -> None:
        self.size = 0
        self.peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """leaf: its hash."""
        bits = self.size
        while bits & 1:
            leaf = sha256(b"\x01" + self.peaks.pop() + leaf)
            bits >>= 1
        self.peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self.peaks:
            return sha256(b"")
        *rest, root = self.peaks
        for left in reversed(rest):
            root = sha256(b"\x01" + left + root)
        return root


class Copy:
    """One copy, as far as it was read. trust: whose keys count; it learns of keys that take over on the way."""

    def __init__(self, trust: Trust, since: str | None) -> None:
        self.trust = trust
        self.tree = Tree()
        self.keys: list[tuple[int, dict[str, Any]]] = []
        self.signed = self.told = 0
        self.newest = ""
        self.kept = None if since is None else checkpoint(since, self._ledger(), Report())
        self._compare_kept()

    def _ledger(self) -> Trust:
        return Trust(self.trust.keys, {}, 0)

    def leaf(self, line: dict[str, Any]) -> None:
        if line.get("index") != self.tree.size:
            raise Broken("leaves", f"leaf {self.tree.size} is missing: leaf {line.get('index')!r} is in its place")
        if "leaf" in line:
            expect(line, {"index": int, "leaf": str}, f"leaf {self.tree.size}")
            fields = read_json(line["leaf"], f"leaf {self.tree.size}")
            if canonical(fields) != line["leaf"]:
                raise Broken("leaves", f"leaf {self.tree.size} is not in its canonical spelling")
            expect(fields, LEAF, f"leaf {self.tree.size}", others=True)
            if fields["kind"] in ("ledger.rotate_key", "ledger.retire_key") and fields["outcome"] == "done":
                self.keys.append((self.tree.size, fields))
            hashed = sha256(b"\x00" + line["leaf"].encode())
            self.told += 1
        else:
            expect(line, {"index": int, "hash": str}, f"leaf {self.tree.size}")
            if not _HASH.fullmatch(line["hash"]):
                raise Broken("leaves", f"the hash of leaf {self.tree.size} is no SHA-256 in hex")
            hashed = bytes.fromhex(line["hash"])
        self.tree.append(hashed)
        self._compare_kept()

    def note(self, line: dict[str, Any]) -> None:
        expect(line, {"checkpoint": str}, "a checkpoint's line")
        size, root = checkpoint(line["checkpoint"], self._ledger(), Report())
        if size != self.tree.size:
            raise Broken("checkpoints", f"the checkpoint of {size} leaves stands after {self.tree.size} leaves")
        if root != self.tree.root():
            raise Broken("checkpoints", f"the leaves do not have the root that was signed at {size}")
        for index, fields in self.keys:
            retired = fields["kind"] == "ledger.retire_key"
            self.trust.learn(index, fields["subject"], str(fields["body"].get("key")), retired=retired, link="keys")
        if self.keys:  # a key does not sign the checkpoint over the leaf that ends it
            checkpoint(line["checkpoint"], self._ledger(), Report())
        self.keys.clear()
        self.signed += 1
        self.newest = line["checkpoint"]

    def _compare_kept(self) -> None:
        if self.kept and self.kept[0] == self.tree.size and self.kept[1] != self.tree.root():
            raise Broken("kept checkpoint", f"the first {self.kept[0]} leaves are not those that it signs: rewritten")


def verify_export(path: Path, trust: Trust, since: str | None = None) -> Report:
    """Reads the copy. since: a signed checkpoint that was kept elsewhere, None = none. Raises OSError, Unreadable."""
    report = Report()
    try:
        with path.open("rb") as file:
            _walk(file, trust, since, report)
    except Broken as broken:
        report.broken = broken
    except ValueError as error:
        report.broken = Broken("form", str(error))
    return report


def _walk(file: BinaryIO, trust: Trust, since: str | None, report: Report) -> None:
    lines = _lines(file)
    header = next(lines, None)
    if header is None or header.get("format") != FORMAT:
        raise Unreadable(f"this is no copy of a ledger: its first line does not say {FORMAT}")
    expect(header, HEADER, "the first line")
    copy = Copy(trust, since)
    for line in lines:
        if "checkpoint" in line:
            copy.note(line)
        else:
            copy.leaf(line)
    tree = copy.tree
    if not copy.newest:
        raise Broken("checkpoints", "the copy holds no checkpoint")
    if copy.kept and copy.kept[0] > tree.size:
        raise Broken("kept checkpoint", f"it signs {copy.kept[0]} leaves, the copy has {tree.size}: cut off")
    # Once more, with the witnesses that were asked for.
    size, _ = checkpoint(copy.newest, trust, report)
    if size != tree.size or size != header["size"]:
        raise Broken("checkpoints", f"{header['size']} leaves were announced, {tree.size} are there, {size} are signed")
    report.links.append(("leaves", f"all {size} leaves are there, in order, and have the signed root"))
    report.links.append(("checkpoints", f"{copy.signed} checkpoints fit the leaves before them"))
    if copy.kept:
        report.links.append(("kept checkpoint", f"the ledger begins with the {copy.kept[0]} leaves that it signs"))
    if copy.told < size:
        report.not_proved.append(f"what {size - copy.told} leaves say: the copy is for {header['project']!r} only")


def _lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if not line.endswith(b"\n"):
            raise Broken("form", f"line {number} is cut off or too long")
        value = read_json(line.decode(), f"line {number}")
        if type(value) is not dict:
            raise Broken("form", f"line {number} is no object")
        yield value
