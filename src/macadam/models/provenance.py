"""How a version came to be, as an in-toto statement with the predicate SLSA Provenance v1. Pure: a run in, JSON out.

Signing it is for `signing`, finding what the run was made from for `supply`. The build type is described in
docs/how-to/verify-a-model.md. From: https://slsa.dev/spec/v1.0/provenance
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from macadam import __version__
from macadam.models.signing import STATEMENT
from macadam.models.types import Code, Run
from macadam.values import instant

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:macadam:build-type:train:v1"


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made from. ref: its reference in the project; digest: `sha256:…`, '' if its leaf names none."""

    ref: str
    digest: str


def statement(
    run: Run, files: Mapping[str, str], dependencies: tuple[Dependency, ...], *, platform: str
) -> dict[str, Any]:
    """The statement about a finished run's files.

    files: path → digest; platform: the name of the ledger that has the run's leaf. Times are those of the call that
    trained: from its begin to the end of the run's process.
    """
    subject = [{"name": name, "digest": _digest(files[name])} for name in sorted(files)]
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "project": run.project,
            "model": run.model,
            "entryPoint": run.entry,
            "trainingSets": dict(run.training_sets),
            "parameters": dict(run.params),
            "seed": run.seed,
        },
        "internalParameters": {"rows": dict(run.rows), "hardware": msgspec.to_builtins(run.hardware)},
        "resolvedDependencies": [
            *(_described(run.project, dependency) for dependency in dependencies),
            *_code(run.project, run.code),
            *_environment(run),
        ],
    }
    details = {
        "builder": {"id": f"urn:macadam:platform:{platform}", "version": {"macadam": __version__}},
        "metadata": {
            "invocationId": f"urn:macadam:{run.project}:{run.ref}",
            "startedOn": instant(run.at),
            "finishedOn": instant(run.at + timedelta(seconds=run.seconds)),
        },
        "byproducts": [{"name": "metrics history", "digest": _digest(run.history), "mediaType": "application/json"}],
    }
    predicate = {"buildDefinition": definition, "runDetails": details}
    return {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": predicate}


def _digest(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}


def _described(project: str, dependency: Dependency) -> dict[str, Any]:
    described: dict[str, Any] = {"name": dependency.ref, "uri": f"urn:macadam:{project}:{dependency.ref}"}
    return {**described, "digest": _digest(dependency.digest)} if dependency.digest else described


def _code(project: str, code: Code) -> list[dict[str, Any]]:
    """The files that the run could see, and the commit around them. What is not committed is in the files alone."""
    archive = {
        "name": "source",
        "uri": f"urn:macadam:{project}:source:{code.archive}",
        "digest": _digest(code.archive),
        "mediaType": "application/x-tar",
    }
    if not code.commit:
        return [archive]
    commit: dict[str, Any] = {
        "name": "commit",
        "uri": f"git+urn:macadam:{project}:code@{code.commit}",
        "digest": {"gitCommit": code.commit},
    }
    if code.diff:
        commit["annotations"] = {"uncommittedChanges": code.diff}
    return [archive, commit]


def _environment(run: Run) -> list[dict[str, Any]]:
    if run.environment is None:
        return []
    return [_described(run.project, Dependency(ref=run.environment.ref, digest=run.environment.digest))]
