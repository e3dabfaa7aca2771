import subprocess

import pytest

from macadam.errors import IntegrityError, InvalidInput, TooLarge, UserCodeFailed
from macadam.models import capture, launch
from macadam.models.capture import Meter


@pytest.fixture
def project(tmp_path):
    place = tmp_path / "project"
    (place / "lib").mkdir(parents=True)
    (place / "train.py").write_text("x = 1\n")
    (place / "lib" / "rates.py").write_text("y = 2\n")
    (place / "gates.yaml").write_text("metrics: {}\n")
    (place / "data.csv").write_text("a\n")
    for hidden in (".git", ".venv", "__pycache__", "own"):
        (place / hidden).mkdir()
        (place / hidden / "no.py").write_text("")
    (place / "own" / "pyvenv.cfg").write_text("")
    (place / "link.py").symlink_to("/etc/passwd")
    return place


def test_an_archive_holds_source_and_nothing_else_and_its_bytes_depend_on_that_alone(project, tmp_path):
    data, files = capture.archive(project)
    to = tmp_path / "to"
    assert capture.unpack(data, to) == files == 3
    found = sorted(p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file())
    assert found == ["gates.yaml", "lib/rates.py", "train.py"]
    (project / "train.py").touch()
    assert capture.archive(project)[0] == data
    (project / "train.py").write_text("x = 2\n")
    assert capture.archive(project)[0] != data


def test_a_directory_that_is_missing_or_no_project_is_refused(project, monkeypatch):
    with pytest.raises(InvalidInput, match="no project directory"):
        capture.archive(project / "nowhere")
    monkeypatch.setattr(capture, "MAX_BYTES", 10)
    with pytest.raises(TooLarge, match="3 source files of 24 bytes"):
        capture.archive(project)


def test_a_damaged_archive_is_an_integrity_error(tmp_path):
    with pytest.raises(IntegrityError):
        capture.unpack(b"no tar at all" * 100, tmp_path)


def test_the_commit_and_what_differs_from_it_are_recorded(project):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(("git", "-C", str(project), *identity, *arguments), check=True, capture_output=True)

    (project / ".git" / "no.py").unlink()
    (project / ".git").rmdir()
    assert capture.git(project) == capture.Git()
    git("init", "-q")
    git("add", "train.py")
    git("commit", "-qm", "first")
    beside = capture.git(project)
    assert beside.diff.startswith("sha256:"), "the archive holds files that are in no commit"
    (project / ".gitignore").write_text("lib/\n")
    assert capture.git(project) == beside, "an ignored file is in no commit either"
    git("add", "--force", "lib/rates.py", "gates.yaml")
    git("commit", "-qm", "second")
    clean = capture.git(project)
    assert len(clean.commit) == 40
    assert not clean.diff
    (project / "train.py").write_text("x = 3\n")
    dirty = capture.git(project)
    assert dirty.commit == clean.commit
    assert dirty.diff.startswith("sha256:")


def test_a_difference_that_git_cannot_tell_counts_as_uncommitted(project, monkeypatch):
    def silent(_directory, *arguments, **_settings):
        said = {"rev-parse": b"c0ffee\n", "ls-files": b"train.py\0lib/rates.py\0gates.yaml\0"}
        return said.get(arguments[0])

    monkeypatch.setattr(capture, "_git", silent)
    assert capture.git(project).diff.startswith("sha256:")


def test_a_lock_names_each_package_once_and_reads_back():
    lock = capture.lock()
    names = [line.partition("==")[0] for line in lock.splitlines()[2:]]
    assert names == sorted(set(names))
    assert "scikit-learn" in names
    found = capture.environment(lock)
    assert found.ref == f"environment:lock@{found.digest[7:19]}"
    assert found.packages == len(names)
    with pytest.raises(UserCodeFailed):
        capture.environment("numpy==1\n")


def zone(root, name, energy, most=1000):
    place = root / name
    place.mkdir(exist_ok=True)
    (place / "energy_uj").write_text(str(energy))
    (place / "max_energy_range_uj").write_text(str(most))


def test_energy_is_summed_over_packages_across_a_counters_end(tmp_path):
    zone(tmp_path, "intel-rapl:0", 900)
    zone(tmp_path, "intel-rapl:1", 100)
    zone(tmp_path, "intel-rapl:0:0", 5)
    before = Meter.read(tmp_path)
    zone(tmp_path, "intel-rapl:0", 50)
    zone(tmp_path, "intel-rapl:1", 300)
    zone(tmp_path, "intel-rapl:0:0", 500)
    assert before.joules_until(Meter.read(tmp_path)) == pytest.approx(350e-6)


def test_energy_that_cannot_be_read_is_absent_and_said_so(tmp_path):
    none = Meter.read(tmp_path / "nowhere")
    assert none.joules_until(none) is None
    assert "no RAPL counters" in none.note


def test_the_machine_has_a_name_cores_and_memory():
    found = capture.hardware()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28


def test_cpu_time_costs_what_a_core_hour_costs():
    assert launch.cost(3600, 48_000).micros == 48_000
    assert launch.cost(1.5, 48_000).micros == 20


def test_looking_at_a_repository_runs_nothing_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MACADAM_TOKEN", "mcd_secret")
    spy = tmp_path / "spy.sh"
    spy.write_text(f'#!/bin/sh\nenv > "{tmp_path}/ran-$1"\n')
    spy.chmod(0o755)
    project = tmp_path / "project"
    project.mkdir()

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(("git", "-C", str(project), *identity, *arguments), check=True, capture_output=True)

    git("init", "-q")
    (project / "train.py").write_text("x = 1\n")
    git("add", "train.py")
    git("commit", "-qm", "first")
    (project / ".gitattributes").write_text("*.py diff=spy filter=spy\n")
    for name in ("core.fsmonitor", "diff.external", "diff.spy.command", "diff.spy.textconv"):
        git("config", name, f"{spy} {name}")
    for name in ("filter.spy.clean", "filter.spy.process"):
        git("config", name, f"{spy} {name}")
    git("config", "filter.spy.required", "true")
    (project / "train.py").write_text("x = 2\n")
    assert capture.git(project).diff
    assert [path.name for path in tmp_path.glob("ran-*")] == []
