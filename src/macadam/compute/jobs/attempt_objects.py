"""Attempts at jobs as objects that the Kubernetes executor creates: one indexed Job each, which Kubernetes never tries again.

Macadam's queue has decided where and when; so the Job is not suspended, names its nodes, and ends with its first member that fails. Its pods carry
a finalizer: what a pod left (exit code, log) is read before it goes. The adapter speaks HTTP and knows none of this.
"""

import base64
import re
import signal
from collections.abc import Mapping
from typing import Any

import msgspec

from macadam.compute.jobs import kubernetes, validation
from macadam.compute.jobs.kubernetes import PREFIX, Object
from macadam.compute.jobs.naming import dns_label, label_value, size
from macadam.compute.jobs.workload import Workload, whole_seconds
from macadam.errors import InvalidInput
from macadam.ports import Allotment, Attempt

FINALIZER = f"{PREFIX}/outcome"
_MANAGED = {"app.kubernetes.io/managed-by": "macadam"}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_WHOLE = 1000
_NAME = 52
_BUNDLE = 900 << 10  # bytes; a ConfigMap holds 1 MiB with everything around
_LEAST_MEMORY = 1 << 20
_MIG = re.compile(r"gpu:.*/mig:([1-9][0-9]?g\.[1-9][0-9]{0,2}gb)-\d+\Z")
# The working files come as a tar in a ConfigMap; the image's own Python unpacks them where the command then runs.
_UNPACK = (
    "import os,sys,tarfile\n"
    "with tarfile.open('/bundle/bundle.tar') as t: t.extractall('/work', filter='data')\n"
    "os.chdir('/work')\n"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts are put on one cluster. image: for jobs that name none, '' = they are refused. memory (bytes): of those that ask for none.
    storage_class: of checkpoints, '' = the cluster's default; checkpoint: bytes of each.
    """

    namespace: str = "macadam"
    image: str = ""
    memory: int = 4 << 30
    storage_class: str = ""
    checkpoint: int = 10 << 30


class AttemptObjects:
    """Renders for one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.namespace = dns_label(site.namespace)

    def name(self, attempt: str) -> str:
        """Of all objects of an attempt. Raises InvalidInput for what is no id."""
        if not _ID.match(attempt):
            raise InvalidInput(f"{attempt!r} is no attempt's id.", next_step="Give a job's id and a number: JOB.1.")
        return dns_label(attempt.lower() if attempt.islower() else attempt, limit=_NAME)

    def claim(self, job: str) -> str:
        """The name of a job's checkpoint."""
        return self.name(job)

    def job(self, attempt: Attempt) -> Object:
        """Raises InvalidInput, NotFound for what this cluster can never run, with the reason."""
        workload = self._workload(attempt)
        found = kubernetes.job(workload, queued=False)
        template = found["spec"]["template"]
        template["metadata"]["finalizers"] = [FINALIZER]
        self._fit(template["spec"], attempt)
        notes = {
            f"{PREFIX}/attempt": attempt.id,
            f"{PREFIX}/job": attempt.job,
            f"{PREFIX}/time-limit": f"{attempt.time_limit:g}",
        }
        labels = {
            **found["metadata"]["labels"],
            **_MANAGED,
            f"{PREFIX}/attempt": label_value(attempt.id),
            f"{PREFIX}/job": label_value(attempt.job),
        }
        template["metadata"]["labels"] |= labels
        found["metadata"] |= self._metadata(attempt.id, labels, notes)
        spec = found["spec"]
        # Once only: a pod that fails or is taken away ends the Job, and nothing is started in its place.
        lost = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        spec |= {"backoffLimit": 0, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [lost]}}
        del spec["ttlSecondsAfterFinished"]
        validation.check_objects([found])
        return found

    def bundle(self, attempt: str, data: bytes, owner: str) -> Object:
        """The working files. owner: the Job's uid, with which they go. Raises InvalidInput if they are too large."""
        if len(data) > _BUNDLE:
            raise InvalidInput(
                f"The working files have {len(data)} bytes, a ConfigMap holds {_BUNDLE}.",
                next_step="Put them into the image, or fetch what is large from object storage.",
            )
        metadata = self._metadata(attempt, {}, {})
        found: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "binaryData": {"bundle.tar": base64.b64encode(data).decode()},
        }
        validation.check_objects([found])
        metadata["ownerReferences"] = [
            {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": owner}
        ]
        return found

    def checkpoint(self, attempt: Attempt) -> Object:
        """The claim that outlives attempts; a gang on several nodes needs storage that many can mount."""
        several = len({allotment.node for allotment in attempt.allotments}) > 1
        spec: Object = {
            "accessModes": ["ReadWriteMany" if several else "ReadWriteOnce"],
            "resources": {"requests": {"storage": size(self._site.checkpoint)}},
        }
        if self._site.storage_class:
            spec["storageClassName"] = self._site.storage_class
        metadata = {"name": self.claim(attempt.job), "namespace": self.namespace}
        found = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        validation.check_objects([found])
        return found

    def tombstone(self, attempt: str, *, why: str, message: str) -> Object:
        """A Job that holds the name and never runs: for what was stopped before it started, or can never start."""
        workload = Workload(name=attempt, project="none", image="none", command=("none",))
        found = kubernetes.job(workload, queued=False)
        notes = {f"{PREFIX}/attempt": attempt, f"{PREFIX}/why": why, f"{PREFIX}/message": message[:1000]}
        found["metadata"] |= self._metadata(attempt, found["metadata"]["labels"], notes)
        found["spec"] |= {"suspend": True, "parallelism": 0}
        del found["spec"]["ttlSecondsAfterFinished"]
        validation.check_objects([found])
        return found

    def _metadata(self, attempt: str, labels: Mapping[str, str], notes: Mapping[str, str]) -> Object:
        return {
            "name": self.name(attempt),
            "namespace": self.namespace,
            "labels": {**labels, **_MANAGED},
            "annotations": dict(notes),
        }

    def _workload(self, attempt: Attempt) -> Workload:
        image = attempt.image or self._site.image
        _refuse(bool(attempt.requirements.strip()), "requirements", "Put the packages into the job's image.")
        _refuse(not image, "no image", "Name an image, or set MACADAM_KUBERNETES_IMAGE for jobs without one.")
        first = attempt.allotments[0]
        alike = all((a.cpus, a.memory, a.disk) == (first.cpus, first.memory, first.disk) for a in attempt.allotments)
        counts = {_gpus(allotment) for allotment in attempt.allotments}
        _refuse(not alike or len(counts) > 1, "members that differ", "Ask for the same for each member.")
        mig, gpus = counts.pop()
        command = ("python", "-c", _UNPACK, *attempt.command) if attempt.bundle else attempt.command
        told = {"MACADAM_JOB": attempt.job, "MACADAM_PROJECT": attempt.project, "PYTHONUNBUFFERED": "1"}
        return Workload(
            name=attempt.id,
            project=attempt.project,
            owner=f"job:{attempt.job}",
            image=image,
            command=command,
            environment=attempt.environment | told,
            cpu_milli=max(1, first.cpus),
            memory=max(first.memory or self._site.memory, _LEAST_MEMORY),
            scratch=first.disk or 1 << 30,
            gpus=gpus,
            mig=mig,
            members=len(attempt.allotments),
            deadline=whole_seconds(attempt.time_limit),
            spot=True,  # which nodes it may have was decided when they were allotted
            grace=whole_seconds(attempt.grace),
            checkpoint=self.claim(attempt.job) if attempt.checkpoint else "",
        )

    def _fit(self, spec: Object, attempt: Attempt) -> None:
        """Its nodes, its signal and its working files."""
        nodes = sorted({allotment.node for allotment in attempt.allotments})
        expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
        (container,) = spec["containers"]
        if attempt.signal != signal.SIGTERM:
            container["lifecycle"] = {"stopSignal": signal.Signals(attempt.signal).name}
            spec["os"] = {"name": "linux"}
        if attempt.bundle:
            container["volumeMounts"] += [{"name": "bundle", "mountPath": "/bundle"}, _WORK_MOUNT]
            files: Object = {"name": "bundle", "configMap": {"name": self.name(attempt.id)}}
            work: Object = {"name": "work", "emptyDir": {"sizeLimit": size(attempt.allotments[0].disk or 1 << 30)}}
            spec["volumes"] += [files, work]


_WORK_MOUNT: Mapping[str, Any] = {"name": "work", "mountPath": "/work"}


def _gpus(allotment: Allotment) -> tuple[str, int]:
    """The MIG profile ('' for whole GPUs) and how many. Which of a node's GPUs a pod gets is the device plugin's choice."""
    profiles = set()
    for device, milli in allotment.gpus.items():
        match = _MIG.match(device)
        _refuse(milli != _WHOLE, "a part of a GPU", "Ask for whole GPUs or MIG slices: Kubernetes has no other parts.")
        profiles.add(match[1] if match else "")
    _refuse(len(profiles) > 1, "slices of several profiles", "Ask for one profile.")
    return (profiles.pop() if profiles else ""), len(allotment.gpus)


def _refuse(wrong: bool, what: str, next_step: str) -> None:  # noqa: FBT001 - the condition is the sentence's subject
    if wrong:
        raise InvalidInput(f"This cluster takes no job with {what}.", next_step=next_step)
