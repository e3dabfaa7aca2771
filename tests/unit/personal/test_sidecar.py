"""Ciphertext beside segments: found by prediction, erased by subject while the file grows, and torn ends."""

import os
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.errors import IntegrityError
from macadam.personal import sidecar
from macadam.personal.cipher import Field
from macadam.personal.sidecar import Bodies, Sealed

PEOPLE = [bytes([n]) * 16 for n in range(4)]
frames = st.lists(
    st.tuples(st.sampled_from(PEOPLE), st.uuids().map(str), st.binary(min_size=28, max_size=90)),
    max_size=20,
    unique_by=lambda f: f[1],
)
Some = list[tuple[bytes, str, bytes]]


def sealed(secret: bytes) -> Sealed:
    return Sealed(b"k" * 32, [Field("inputs.x", secret)])


def written(some: Some) -> bytes:
    return b"".join(sidecar.frame(person, prediction, sealed(secret)) for person, prediction, secret in some)


@given(frames, st.integers(0, 60))
def test_whole_frames_are_read_back_and_a_torn_end_is_dropped(some: Some, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.personal"
        data = written(some)
        kept = max(0, len(data) - cut)
        path.write_bytes(data[:kept])
        lengths = [len(written([one])) for one in some]
        whole = sum(sum(lengths[: n + 1]) <= kept for n in range(len(some)))
        found = list(sidecar.read(path))
        assert [(f.subject, str(uuid.UUID(bytes=f.prediction))) for f in found] == [(p, i) for p, i, _ in some[:whole]]
        assert [sidecar.opened(f.body) for f in found] == [sealed(s) for _, _, s in some[:whole]]


@given(frames, st.sets(st.sampled_from(PEOPLE)))
def test_erasing_some_leaves_the_others_and_no_byte_of_theirs(some: Some, gone: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.personal"
        path.write_bytes(written(some))
        growing = os.open(path, os.O_WRONLY | os.O_APPEND)  # as a gateway holds it
        assert sidecar.overwrite(path, frozenset(gone)) == sum(person in gone for person, _, _ in some)
        os.write(growing, written([(PEOPLE[0], str(uuid.UUID(int=7)), b"later" * 8)]))
        os.close(growing)
        assert sidecar.overwrite(path, frozenset()) == 0
        data, found = path.read_bytes(), list(sidecar.read(path))
        assert len(found) == len(some) + 1
        for frame, (person, _, secret) in zip(found, some, strict=False):
            assert bool(frame.body) == (person not in gone)
            others = {s for p, _, s in some if p not in gone}
            assert (secret in data) == (secret in others) or any(secret in s for s in others)
        index = Bodies(sidecar.build(found))
        assert index.count == sum(person not in gone for person, _, _ in some) + 1
        assert index.subjects() == {person for person, _, _ in some if person not in gone} | {PEOPLE[0]}
        for person, prediction, secret in some:
            at = index.find(prediction)
            assert (at is None) == (person in gone)
            assert at is None or sidecar.opened(at.body) == sealed(secret)


@pytest.mark.parametrize("data", [b"", b"MCDMPER1", b"MCDMPER1\xff\xff\xff\xff", b"other bytes altogether"])
def test_other_bytes_are_no_object(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Bodies(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_a_crash(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.personal"
        path.write_bytes(data)
        for frame in sidecar.read(path):
            assert frame.length <= len(data)
