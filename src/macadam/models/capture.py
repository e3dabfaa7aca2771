"""What a run must record beside its results: the code, the machine, the energy.

The source archive is made first and the run sees only what is in it, so that what ran is what is recorded.
The environment is captured in the run's own process (`lock`), which may not be the platform's.
"""

import hashlib
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from macadam.errors import IntegrityError, InvalidInput, TooLarge, UserCodeFailed
from macadam.models.types import Environment, Hardware
from macadam.settings import without_credentials
from macadam.values import digest_of

SUFFIXES = (".py", ".yaml", ".yml", ".toml", ".txt", ".sql")
"""What counts as source. Data belongs in tables, where it has snapshots."""

MAX_BYTES = 8 * 1024 * 1024
MAX_FILES = 2000
"""A project's own code is far below both; more means that the directory is not a project."""

_SKIPPED = {"__pycache__", "node_modules", "venv", "demo-home"}
_GIT_TIMEOUT = 20.0
_PLAIN_DIFF = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
_POWERCAP = Path("/sys/class/powercap")


# --- code


class Git(msgspec.Struct, frozen=True, kw_only=True):
    """commit: '' outside of a repository. diff: digest of what of the source is not committed, '' if nothing is."""

    commit: str = ""
    diff: str = ""


def archive(directory: Path) -> tuple[bytes, int]:
    """The source files under `directory` as a tar file, the same bytes for the same files; and how many there are.

    Hidden directories and virtual environments are left out. Raises InvalidInput, TooLarge.
    """
    if not directory.is_dir():
        raise InvalidInput(
            f"There is no project directory {directory}.", next_step="Give the directory that holds train.py."
        )
    paths = sorted(_sources(directory))
    total = sum(p.stat().st_size for p in paths)
    if total > MAX_BYTES or len(paths) > MAX_FILES:
        raise TooLarge(
            f"{directory} holds {len(paths)} source files of {total} bytes; at most {MAX_FILES} files and {MAX_BYTES} bytes fit.",
            next_step="Train from the project's own directory, and keep data in tables.",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            data = path.read_bytes()
            # Neither time, owner nor mode: only names and contents decide the digest.
            entry = tarfile.TarInfo(path.relative_to(directory).as_posix())
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue(), len(paths)


def _sources(directory: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(directory):
        here = Path(root)
        folders[:] = [
            f for f in folders if not f.startswith(".") and f not in _SKIPPED and not _is_environment(here / f)
        ]
        for name in files:
            path = here / name
            if name.endswith(SUFFIXES) and not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


def unpack(data: bytes, to: Path) -> int:
    """Unpacks `archive` into an empty directory; returns the number of files. Raises IntegrityError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = tar.getmembers()
            tar.extractall(to, members, filter="data")
    except tarfile.TarError as error:
        raise IntegrityError(
            f"The source archive cannot be unpacked: {error}", next_step="Train from the project's directory."
        ) from error
    return len(members)


def git(directory: Path) -> Git:
    """The commit and what differs from it, under `directory` only. Empty where there is no repository or no git.

    Source files that git does not know, ignored ones too, differ from it: `archive` takes them, and the run sees them.
    """
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return Git()
    diff = _git(directory, "diff", *_PLAIN_DIFF, "--binary", "HEAD", "--", ".", settings=_without_filters(directory))
    if diff is None:
        diff = b"git could not say what differs\n"  # what is not known to be committed counts as uncommitted
    tracked = {os.fsdecode(name) for name in (_git(directory, "ls-files", "-z", "--", ".") or b"").split(b"\0")}
    for path in sorted(_sources(directory)):
        name = path.relative_to(directory).as_posix()
        if name not in tracked:
            diff += os.fsencode(f"untracked {name} ") + sha256_of(path).encode() + b"\n"
    return Git(commit=commit.decode().strip(), diff=digest_of(diff) if diff else "")


def _without_filters(directory: Path) -> Sequence[str]:
    """The repository's own content filters: commands that it would have run on its files. The user's own are kept."""
    said = _git(directory, "config", "--null", "--show-scope", "--name-only", "--get-regexp", r"^filter\.")
    words = [word.decode(errors="surrogateescape") for word in (said or b"").split(b"\0")]
    return [name for scope, name in zip(words[::2], words[1::2], strict=False) if scope in ("local", "worktree")]


def _git(directory: Path, *arguments: str, settings: Sequence[str] = ()) -> bytes | None:
    """What git says, None if it could not. settings: names of those that count as empty."""
    # Optional locks off: looking must not write into the user's repository, and nothing it names may be run.
    command = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(directory), *arguments)
    variables = {k: v for k, v in without_credentials(os.environ).items() if not k.startswith("GIT_")}
    variables["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, name in enumerate(settings):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": ""}
    try:
        done = subprocess.run(  # noqa: S603 - no shell, fixed verbs
            command, env=variables, capture_output=True, timeout=_GIT_TIMEOUT, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


# --- environment and machine


def lock() -> str:
    """The packages that this process can import, as sorted `name==version` lines, with Python and platform on top."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a damaged installation may have none
            # The first on the path is the one that is imported.
            found.setdefault(name.lower().replace("_", "-"), distribution.version)
    head = [f"# python {platform.python_version()} {sys.implementation.name}", f"# platform {platform.platform()}"]
    return "\n".join(head + [f"{name}=={version}" for name, version in sorted(found.items())]) + "\n"


def environment(text: str) -> Environment:
    """What a lock says. Raises UserCodeFailed if it is no lock: the run's own process wrote it."""
    lines = text.splitlines()
    if len(lines) < 2 or not lines[0].startswith("# python ") or not lines[1].startswith("# platform "):  # noqa: PLR2004
        raise UserCodeFailed("The run's environment lock is damaged.", next_step="Run the training again.")
    digest = digest_of(text.encode())
    return Environment(
        ref=f"environment:lock@{digest[7:19]}",
        digest=digest,
        python=lines[0].removeprefix("# python ").split()[0],
        platform=lines[1].removeprefix("# platform "),
        packages=sum(1 for line in lines[2:] if "==" in line),
    )


def hardware() -> Hardware:
    """The processor's name, the cores that this process may use, and the installed memory."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(cpu=_processor(), cores=cores, memory_bytes=pages)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# --- energy


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Running energy counters of the processor packages (Intel RAPL through powercap), µJ, by zone."""

    counters: dict[str, int]
    note: str = ""

    @classmethod
    def read(cls, root: Path = _POWERCAP) -> "Meter":
        """Note says why there is nothing, where there is nothing."""
        counters = {}
        try:
            for zone in sorted(root.glob("*:[0-9]*")):
                # Sub-zones such as intel-rapl:0:1 are part of their package: counting them too would double it.
                if zone.name.count(":") == 1 and zone.name.startswith("intel-rapl:"):
                    counters[str(zone)] = int((zone / "energy_uj").read_text())
        except PermissionError:
            return cls(counters={}, note=f"not readable: {root} needs more rights")
        except (OSError, ValueError) as error:
            return cls(counters={}, note=f"not readable: {error}")
        return cls(counters=counters, note="" if counters else "not readable: this machine exposes no RAPL counters")

    def joules_until(self, later: "Meter") -> float | None:
        """Energy of all packages between two readings, whoever used it; None if one of them has no counters."""
        if not self.counters or self.counters.keys() != later.counters.keys():
            return None
        spans = (
            later.counters[z] - before + _wrap(z, before, later.counters[z]) for z, before in self.counters.items()
        )
        return sum(spans) / 1e6


def _wrap(zone: str, before: int, after: int) -> int:
    """Counters start again at 0 after max_energy_range_uj."""
    return int((Path(zone) / "max_energy_range_uj").read_text()) if after < before else 0


def sha256_of(path: Path) -> str:
    """Digest of a file of any size."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
