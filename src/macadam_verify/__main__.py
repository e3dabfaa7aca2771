"""The independent verifier of Macadam proof bundles (macadam-proof/1) and receipts (macadam-receipt/1).

    python -m macadam_verify bundle.json --key FILE [--announced FILE] [--witness FILE [--quorum K]] [--json]
        [--allow-missing ROLE]
    python -m macadam_verify receipt.json --key FILE … [--answer FILE]
    python -m macadam_verify --certificate FILE --key FILE …
    python -m macadam_verify --ledger FILE --key FILE [--since FILE] …

This file, `signed`, `certificate` and `exported` are the whole verifier. It needs Python and `cryptography`, imports nothing of Macadam, and reads
nothing but the files named. It walks one chain, link by link, and stops at the first that is broken:

    signed checkpoint -> every leaf is in the ledger -> the record is in a sealed segment -> deployment -> version
    -> run -> snapshots -> contracts, then evaluation, thresholds set before, gate, approval by another person, policies

A receipt is for whoever asked for one prediction: signed checkpoint -> the seal is in the ledger -> the record is in the
sealed segment, and nothing behind it; with --answer also that the answer they kept is the one that was recorded.
A certificate of erasure is the ledger's signed word on what was destroyed of a person.

The key file holds the ledger's verifier key (a line name+id+base64), got from the operator by another way than the
bundle. Further lines are other keys of that ledger (` since SIZE` and ` until SIZE` behind one say which checkpoints it
signs), or of others: their signatures are checked as well, but only the first key's ledger counts. --announced leads
from a key that was given to those that took over from it: each stands in a leaf that the keys before it have signed.
--witness holds keys of witnesses, of whom K (all, if it is not said) must have cosigned the checkpoint.
Exit code: 0 proved, 1 a link is broken or missing (it is named), 2 the input cannot be read.
"""

import argparse
import json
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from macadam_verify import certificate
from macadam_verify.exported import verify_export
from macadam_verify.signed import (
    Broken,
    Report,
    Trust,
    Unreadable,
    canonical,
    checkpoint,
    decoded,
    expect,
    read_hashes,
    read_json,
    root_from_path,
    trusted,
)

# What a leaf must be to count in a role: the operation that wrote it, and the subject it is about. A bundle is
# put together by the party that is being checked, so its word for what a leaf means is not taken.
ROLES = {
    "segment": ("journal.seal*", "*"),
    "deployment": ("serving.deploy*", "*"),
    "version": ("models.register_version", "model:*@*"),
    "run": ("models.train*", "run:*"),
    "training_set": ("features.build_training_set", "training_set:*"),
    "snapshot": ("data.*", "table:*@*"),
    "contract": ("data.register_contract", "contract:*"),
    "environment": ("models.*", "environment:*"),
    "evaluation": ("models.evaluate*", "*"),
    "thresholds": ("models.declare_thresholds", "*"),
    "gate": ("models.check_gate models.set_alias", "*"),  # either may record what the gate said
    "approval": ("models.approve*", "*"),
    "policy": ("access.*", "policy:sha256:*"),
    "project": ("access.*", "project:*"),
    "other": ("*", "*"),
}
AT_MOST_ONE = ("segment", "deployment")
MAY_BE_ALLOWED_MISSING = ("contract", "evaluation", "thresholds", "gate", "approval", "policy")

BUNDLE = {"format": str, "claim": str, "record": str, "segment": dict, "checkpoint": str, "leaves": list}
SEGMENT = {"leaf": int, "index": int, "count": int, "path": list}
ENTRY = {"role": str, "index": int, "leaf": str, "path": list}
RECEIPT = {"format": str, "claim": str, "record": str, "segment": dict, "leaf": dict, "checkpoint": str}
SEALED = {"index": int, "count": int, "path": list}
IN_LEDGER = {"index": int, "leaf": str, "path": list}
LEAF: dict[str, type] = {"v": int, "id": str, "at": str, "kind": str, "outcome": str, "actor": str, "project": str}
LEAF |= {"subject": str, "uses": list, "request": str, "decision": dict, "body": dict}
DECISION = {"effect": str, "policies": list, "policy_set": str, "id": str}
RECORD = {"id": str, "at": str, "project": str, "endpoint": str, "variant": str, "version": str}
RECORD |= {"model_digest": str, "deployment": str, "actor": str, "outcome": str}

ANNOUNCEMENT = {"format": str, "index": int, "leaf": str, "path": list, "checkpoint": str}


class Leaf:
    """A ledger leaf of the bundle, in the role that the bundle gives it."""

    def __init__(self, role: str, index: int, text: str, path: list[bytes], fields: dict[str, Any]) -> None:
        self.role, self.index, self.data, self.path = role, index, text.encode(), path
        self.id, self.at, self.kind, self.outcome = fields["id"], fields["at"], fields["kind"], fields["outcome"]
        self.actor, self.project, self.subject = fields["actor"], fields["project"], fields["subject"]
        self.uses, self.decision, self.body = fields["uses"], fields["decision"], fields["body"]

    def __str__(self) -> str:
        return f"{self.role} leaf {self.index}"


# --- reading, strictly ------------------------------------------------------------------------------------


def read_leaf(entry: Any) -> Leaf:
    expect(entry, ENTRY, "an entry of leaves")
    role, index, text = entry["role"], entry["index"], entry["leaf"]
    what = f"{role} leaf {index}"
    if role not in ROLES:
        raise Broken("form", f"{role!r} is no role")
    fields = read_json(text, what)
    if canonical(fields) != text:
        raise Broken("form", f"{what} is not in its canonical spelling")
    expect(fields, LEAF, what)
    expect(fields["decision"], DECISION, f"the decision of {what}")
    if fields["v"] != 1 or not all(type(ref) is str for ref in fields["uses"]):
        raise Broken("form", f"{what} must be of version 1 and use references")
    return Leaf(role, index, text, read_hashes(entry["path"], f"the path of {what}"), fields)


def read_bundle(data: bytes) -> dict[str, Any]:
    """Raises Unreadable if this is no JSON; breaks the link 'form' if it is not the one spelling of a bundle."""
    bundle = decoded(data, "the bundle")
    if (canonical(bundle) + "\n").encode() != data:
        raise Broken("form", "the bundle is not in its canonical spelling (sorted keys, no spaces, one final newline)")
    expect(bundle, BUNDLE, "the bundle")
    expect(bundle["segment"], SEGMENT, "the segment")
    if bundle["format"] != "macadam-proof/1":
        raise Broken("form", f"the format is {bundle['format']!r}, expected 'macadam-proof/1'")
    return dict(bundle)


# --- the links --------------------------------------------------------------------------------------------


def follow(announced: str, trust: Trust) -> None:
    """Adds the keys that the ledger has announced under a key known so far, and ends those that it has retired."""
    link, ledger = "announced keys", Trust(trust.keys, {}, 0)
    for line in announced.splitlines():
        entry = read_json(line, "an announcement")
        expect(entry, ANNOUNCEMENT, "an announcement")
        size, root = checkpoint(entry["checkpoint"], ledger, Report())
        leaf = read_leaf({name: entry[name] for name in ("index", "leaf", "path")} | {"role": "other"})
        if root_from_path(leaf.data, leaf.index, size, leaf.path, link) != root:
            raise Broken(link, f"{leaf} does not lead to its checkpoint's root")
        if leaf.outcome != "done" or leaf.kind not in ("ledger.rotate_key", "ledger.retire_key"):
            raise Broken(link, f"{leaf.kind} announces no key")
        retired = leaf.kind == "ledger.retire_key"
        trust.learn(leaf.index, leaf.subject, str(leaf.body.get("key")), retired=retired, link=link)
        checkpoint(entry["checkpoint"], ledger, Report())  # again: a key does not sign over the leaf that ends it


def inclusion(leaves: list[Leaf], size: int, root: bytes, report: Report) -> None:
    """Every leaf is in the signed ledger, records what was done and allowed, and is what its role says."""
    for leaf in leaves:
        link = f"inclusion of {leaf}"
        if root_from_path(leaf.data, leaf.index, size, leaf.path, link) != root:
            raise Broken(link, "it does not lead to the checkpoint's root")
        kinds, subject = ROLES[leaf.role]
        if not any(fnmatchcase(leaf.kind, kind) for kind in kinds.split()) or not fnmatchcase(leaf.subject, subject):
            raise Broken(f"role of {leaf}", f"{leaf.kind} on {leaf.subject!r} does not count as {leaf.role}")
        if leaf.outcome != "done" or leaf.decision["effect"] != "allow":
            raise Broken(f"role of {leaf}", "it records a call that was denied")
    for role in AT_MOST_ONE:
        if sum(leaf.role == role for leaf in leaves) > 1:
            raise Broken("form", f"there is more than one {role} leaf")
    report.links.append(("inclusion", f"all {len(leaves)} leaves of the bundle are in that ledger"))


def is_about(ref: str) -> Callable[[Leaf], bool]:
    return lambda leaf: leaf.subject == ref


class Chain:
    """Walks from the prediction to its origins. Each method checks the links in its docstring, in that order."""

    def __init__(self, bundle: dict[str, Any], leaves: list[Leaf], allowed: list[str], report: Report) -> None:
        self.bundle, self.leaves, self.allowed, self.report = bundle, leaves, allowed, report
        self.record = read_json(bundle["record"], "the record")
        expect(self.record, RECORD, "the record", others=True)

    def holds(self, link: str, what: str) -> None:
        self.report.links.append((link, what))

    def all(self, role: str, fits: Callable[[Leaf], bool]) -> list[Leaf]:
        """All leaves of a role that fit, oldest first."""
        return sorted((leaf for leaf in self.leaves if leaf.role == role and fits(leaf)), key=lambda leaf: leaf.index)

    def find(self, role: str, link: str, fits: Callable[[Leaf], bool], *, before: Leaf) -> Leaf | None:
        """The newest leaf of a role that fits and is older than `before`.

        None if no leaf fits and --allow-missing covers the role; else that is a broken link.
        """
        found = self.all(role, fits)
        if not found and role in self.allowed:
            self.report.not_proved.append(f"{link}: the bundle has no {role} leaf that fits (allowed to be missing)")
            return None
        if not found:
            raise Broken(link, f"not proved: the bundle has no {role} leaf that fits")
        older = [leaf for leaf in found if leaf.index < before.index]
        if not older:
            raise Broken(link, f"the {found[0]} was not recorded before the {before}")
        return older[-1]

    def need(self, role: str, link: str, fits: Callable[[Leaf], bool], *, before: Leaf) -> Leaf:
        """Like `find`, for the roles that no option allows to be missing."""
        leaf = self.find(role, link, fits, before=before)
        if leaf is None:
            raise Broken(link, f"not proved: the bundle has no {role} leaf that fits")
        return leaf

    def about_version(self, leaf: Leaf) -> bool:
        """Is it newer than the version, and about it? The first model that a leaf names is the one it is about:
        others are what that was compared with.
        """
        models = [ref for ref in (leaf.subject, *leaf.uses) if ref.startswith("model:")]
        return models[:1] == [self.made.subject] and leaf.index > self.made.index

    def projects(self) -> None:
        """Every leaf -> the prediction's project, where they are not the platform's own"""
        for leaf in self.leaves:
            shared = leaf.project == "" and leaf.role in ("segment", "policy", "project", "other")
            if leaf.project != self.record["project"] and not shared:
                raise Broken(f"project of {leaf}", f"it is of {leaf.project!r}, not of {self.record['project']!r}")

    def segment(self) -> None:
        """Record -> segment"""
        link, at, claim = "record -> segment", self.bundle["segment"], f"prediction:{self.record['id']}"
        if self.bundle["claim"] != claim:
            raise Broken(link, f"the claim is {self.bundle['claim']!r}, the record is {claim}")
        if not 0 <= at["leaf"] < len(self.leaves) or self.leaves[at["leaf"]].role != "segment":
            raise Broken(link, f"leaf {at['leaf']} of the bundle is not the segment's")
        self.sealed, count = self.leaves[at["leaf"]], at["count"]
        path = read_hashes(at["path"], "the segment's path")
        root = root_from_path(self.bundle["record"].encode(), at["index"], count, path, link)
        if self.sealed.body.get("root") != f"sha256:{root.hex()}" or self.sealed.body.get("count") != count:
            raise Broken(link, "the record is not in the sealed segment")
        self.holds(link, f"the record is number {at['index']} of the {count} that were sealed at {self.sealed.at}")

    def deployment(self) -> None:
        """Record -> deployment"""
        link, endpoint, wanted = (
            "record -> deployment",
            f"endpoint:{self.record['endpoint']}",
            self.record["deployment"],
        )
        self.deployed = self.need("deployment", link, lambda leaf: leaf.id == wanted, before=self.sealed)
        if endpoint not in [ref.partition("@")[0] for ref in (self.deployed.subject, *self.deployed.uses)]:
            raise Broken(link, f"the deployment is of {self.deployed.subject}, not of {endpoint}")
        self.holds(link, f"{self.deployed.actor} deployed to {endpoint} at {self.deployed.at}")

    def version(self) -> None:
        """Record -> version -> run; deployment -> version"""
        link, ref, digest = "record -> version", self.record["version"], self.record["model_digest"]
        self.made = self.need("version", link, is_about(ref), before=self.deployed)
        if self.made.body.get("artifact") != digest:
            raise Broken(link, f"the record names another model file than {ref} was registered with")
        self.holds(link, f"{ref} is the file {digest}, registered by {self.made.actor}")
        if ref not in self.deployed.uses:
            raise Broken("deployment -> version", f"it does not deploy {ref}")
        self.holds("deployment -> version", f"that deployment is of {ref}")
        link = "version -> run"
        self.run = self.need("run", link, lambda leaf: leaf.subject in self.made.uses, before=self.made)
        self.holds(link, f"{ref} was trained by {self.run.subject}")

    def vouched(self) -> None:
        """Version -> signature; deployment -> signature"""
        link, body = "version -> signature", self.made.body
        signature, provenance, key = (body.get(name) for name in ("model_signature", "provenance", "signing_key"))
        if not (signature and provenance and key):
            self.report.not_proved.append(f"{link}: {self.made} names no signature of the model's files")
            return
        if self.deployed.body.get("model_signature") != signature:
            raise Broken("deployment -> signature", f"it deploys another signature than {self.made.subject} has")
        self.holds(link, f"its files are signed with the key {key} ({signature}), which also signed {provenance}")
        self.holds("deployment -> signature", "that signature is what gateways verify before they load the files")

    def data(self) -> None:
        """Run -> snapshots -> contracts; run -> environment"""
        link, users = "run -> snapshots", {ref: self.run for ref in self.run.uses if ref.startswith("table:")}
        for ref in [ref for ref in self.run.uses if ref.startswith("training_set:")]:
            rows = self.need("training_set", link, is_about(ref), before=self.run)
            users |= {table: rows for table in rows.uses if table.startswith("table:")}
        if not users:
            raise Broken(link, f"not proved: {self.run.subject} names no snapshot that it was trained on")
        self.tables, self.contracts = sorted(users), set[str]()
        for table, user in sorted(users.items()):
            self.contract(self.need("snapshot", link, is_about(table), before=user))
        self.holds(link, f"{self.run.subject} was trained on {', '.join(self.tables)}")
        environment = self.all("environment", lambda leaf: leaf.subject in self.run.uses)
        if environment:
            self.holds("run -> environment", f"{self.run.subject} ran in {environment[-1].subject}")
        else:
            self.report.not_proved.append(f"run -> environment: no environment leaf that {self.run.subject} uses")

    def contract(self, snapshot: Leaf) -> None:
        """Snapshot -> contracts"""
        link = f"snapshot -> contract ({snapshot.subject})"
        used = [ref for ref in snapshot.uses if ref.startswith("contract:")]
        refs = [ref for ref in used if self.find("contract", link, is_about(ref), before=snapshot)]
        if refs:
            self.contracts.update(refs)
            self.holds(link, f"{snapshot.subject} was published under {', '.join(refs)}")
        else:
            self.report.not_proved.append(f"{link}: it names no contract whose leaf is here")

    def evaluation(self) -> None:
        """Gate -> evaluation -> version; thresholds -> evaluation"""
        judged = [leaf.subject for leaf in self.all("evaluation", self.about_version)]
        gates = self.all("gate", lambda leaf: any(ref in judged for ref in leaf.uses) or self.about_version(leaf))
        passed = [leaf for leaf in gates if leaf.body.get("verdict") == "pass"]
        if gates and not passed:
            raise Broken("gate -> evaluation", f"the gate's verdict is {gates[-1].body.get('verdict')!r}, not 'pass'")
        gate = self.find("gate", "gate -> evaluation", lambda leaf: leaf in passed, before=self.sealed)
        if gate and judged and not any(ref in judged for ref in gate.uses):
            raise Broken("gate -> evaluation", f"the gate does not use {' or '.join(judged)}")
        link, gated, later = "evaluation -> version", gate.uses if gate else judged, gate or self.sealed
        evaluation = self.find(
            "evaluation", link, lambda leaf: self.about_version(leaf) and leaf.subject in gated, before=later
        )
        if gate:
            self.holds("gate -> evaluation", f"the gate passed {self.made.subject} at {gate.at}")
        if evaluation:
            self.holds(link, f"{self.made.subject} was evaluated at {evaluation.at} ({evaluation.subject})")
            link, used = "thresholds -> evaluation", [*evaluation.uses, *(gate.uses if gate else [])]
            thresholds = self.find("thresholds", link, lambda leaf: leaf.subject in used, before=evaluation)
            if thresholds:
                self.holds(link, f"its thresholds were recorded before it, at {thresholds.at}")

    def approved(self) -> None:
        """Approval -> version, by another principal, before the deployment"""
        link, author = "approval -> version", self.made.actor
        by_others = self.all("approval", lambda leaf: self.about_version(leaf) and leaf.actor != author)
        if not by_others and self.all("approval", self.about_version):
            raise Broken(link, f"{author} approved the version that they registered themselves")
        self.approval = self.find("approval", link, lambda leaf: leaf in by_others, before=self.deployed)
        if self.approval:
            self.holds(link, f"{self.approval.actor} approved what {author} registered, before it was deployed")

    def policies(self) -> None:
        """Each decision -> the policies in force"""
        sets = set()
        for leaf in [leaf for leaf in self.leaves if leaf.role != "policy"]:
            ref = f"policy:{leaf.decision['policy_set']}"
            in_force = self.find("policy", f"{leaf} -> policy", is_about(ref), before=leaf)
            if in_force:
                sets.add(ref)
                self.project_policies(in_force)
        if sets:
            self.holds("decisions -> policies", f"they were made under {', '.join(sorted(sets))}")

    def project_policies(self, in_force: Leaf) -> None:
        """A project's own policies -> the platform's set beside them, the text, its approval by somebody else"""
        if not in_force.project or not in_force.body.get("own"):
            return
        own = f"policy:{in_force.body['own']}"
        for ref in (f"policy:{in_force.body.get('platform')}", own):
            self.find("policy", f"{in_force} -> {ref}", is_about(ref), before=in_force)
        authors = {x.actor for x in self.all("policy", is_about(own)) if x.kind == "access.propose_policies"}
        self.find(
            "policy",
            f"{in_force} -> approval",
            lambda x: x.subject == own and x.kind == "access.approve_policies" and x.actor not in authors,
            before=in_force,
        )

    def story(self) -> list[str]:
        r, made, run = self.record, self.made, self.run
        lines = [
            f"Prediction {r['id']} was answered at {r['at']} for {r['actor']}",
            f"  by endpoint {r['endpoint']} (variant {r['variant']}) of project {r['project']}, outcome {r['outcome']}.",
            f"The answer came from {made.subject}, registered by {made.actor} at {made.at}.",
            f"It was trained by {run.subject} (recorded by {run.actor} at {run.at}) on {', '.join(self.tables)},",
            f"  published under {', '.join(sorted(self.contracts)) or 'no contract that is proved'}.",
        ]
        if self.approval:
            lines.append(f"It was approved by {self.approval.actor} at {self.approval.at}.")
        return [*lines, f"It was deployed by {self.deployed.actor} at {self.deployed.at}."]


# --- receipts ---------------------------------------------------------------------------------------------


def receipt_in(data: bytes) -> str:
    """The receipt's text if this is one, as a file or inside the platform's answer; else ''. Raises Unreadable."""
    value = decoded(data, "the input")
    value = value if type(value) is dict else {}
    inner = value.get("receipt")
    return data.decode() if value.get("format") == "macadam-receipt/1" else inner if type(inner) is str else ""


def read_receipt(text: str) -> tuple[dict[str, Any], Leaf]:
    """The receipt, shaped like a bundle of one leaf, and that leaf: the segment's seal."""
    receipt = read_json(text, "the receipt")
    if canonical(receipt) + "\n" != text:
        raise Broken("form", "the receipt is not in its canonical spelling (sorted keys, no spaces, one final newline)")
    expect(receipt, RECEIPT, "the receipt")
    expect(receipt["segment"], SEALED, "the segment")
    expect(receipt["leaf"], IN_LEDGER, "the leaf")
    if receipt["format"] != "macadam-receipt/1":
        raise Broken("form", f"the format is {receipt['format']!r}, expected 'macadam-receipt/1'")
    sealed = read_leaf({"role": "segment", **receipt["leaf"]})
    return {**receipt, "segment": {"leaf": 0, **receipt["segment"]}}, sealed


def verify_receipt(text: str, key: str | Trust, answer: bytes | None, announced: str = "") -> Report:
    """Checks a receipt. key: see `verify`. answer: what the caller was sent, a JSON body. Raises Unreadable."""
    trust = trusted(key) if isinstance(key, str) else key

    def links(report: Report) -> None:
        follow(announced, trust)
        receipt, sealed = read_receipt(text)
        size, root = checkpoint(receipt["checkpoint"], trust, report)
        inclusion([sealed], size, root, report)
        chain = Chain(receipt, [sealed], [], report)
        chain.projects()
        chain.segment()
        if answer is not None:
            answered(answer, chain.record, report)
        told = chain.record
        report.story = [
            f"Prediction {told['id']} of {told['actor']} is recorded: asked at {told['at']} at endpoint {told['endpoint']}",
            f"  of {told['project']}, answered by {told['version']}, outcome {told['outcome']}.",
            "How the model came to be is not shown by a receipt: that is what a proof bundle is for.",
        ]

    return walked(links)


def answered(data: bytes, record: dict[str, Any], report: Report) -> None:
    """Answer -> record: what the caller was sent is what was recorded"""
    link, answer = "answer -> record", decoded(data, "the answer")
    pairs = {"prediction": "id", "version": "version", "output": "output"}
    if type(answer) is not dict or not set(pairs) <= set(answer):
        raise Unreadable("the answer is no prediction: it has no id, version and output")
    personal = record.get("personal")
    hidden = personal.get("fields") if type(personal) is dict else None
    same = []
    for name, told in pairs.items():
        if name == "output" and type(hidden) is dict and name in hidden:
            report.not_proved.append(f"{link}: the output is personal, so the record holds only a commitment to it")
        elif canonical(answer[name]) != canonical(record.get(told)):
            raise Broken(link, f"its {name} is {canonical(answer[name])}, recorded is {canonical(record.get(told))}")
        else:
            same.append(name)
    report.links.append((link, f"{', '.join(same)} of the kept answer are as they were recorded"))


def verify(data: bytes, key: str | Trust, allowed: list[str], announced: str = "") -> Report:
    """Checks a bundle. key: the text of a key file, or whom to trust. Raises Unreadable; a broken link is in the report."""
    trust = trusted(key) if isinstance(key, str) else key

    def links(report: Report) -> None:
        follow(announced, trust)
        bundle = read_bundle(data)
        leaves = [read_leaf(entry) for entry in bundle["leaves"]]
        size, root = checkpoint(bundle["checkpoint"], trust, report)
        inclusion(leaves, size, root, report)
        chain = Chain(bundle, leaves, allowed, report)
        for walk in (chain.projects, chain.segment, chain.deployment, chain.version, chain.vouched, chain.data):
            walk()
        chain.evaluation()
        chain.approved()
        chain.policies()
        report.story = chain.story()

    return walked(links)


def verify_certificate(data: bytes, key: str | Trust, announced: str = "") -> Report:
    """Checks a certificate of erasure. Raises Unreadable."""
    trust = trusted(key) if isinstance(key, str) else key

    def links(report: Report) -> None:
        if not certificate.is_certificate(data):
            raise Unreadable("the file is no certificate of erasure")
        follow(announced, trust)
        certificate.links(data, trust, report)

    return walked(links)


def verify_copy(path: Path, trust: Trust, since: str | None, announced: str = "") -> Report:
    """Checks a copy of the whole ledger. since: see `verify_export`. Raises OSError, Unreadable."""
    led = walked(lambda _report: follow(announced, trust))
    return led if led.broken else verify_export(path, trust, since)


def walked(links: Callable[[Report], None]) -> Report:
    """What was found up to the end, or to the first broken link."""
    report = Report()
    try:
        links(report)
    except Broken as broken:
        report.broken = broken
    except ValueError as error:  # a part of the input is not JSON or base64
        report.broken = Broken("form", str(error))
    return report


def show(report: Report) -> None:
    for link, what in report.links:
        say(f"  ok          {link}: {what}")
    for what in report.not_proved:
        say(f"  not proved  {what}")
    for line in ["PROVED", *report.story] if report.broken is None else [f"BROKEN at {report.broken}"]:
        say(line)


def say(line: str) -> None:
    # Names in a bundle are chosen by others: control characters must not reach the auditor's terminal.
    print(line.encode("unicode_escape").decode())


def as_json(report: Report) -> str:
    broken = None if report.broken is None else {"link": report.broken.link, "why": report.broken.why}
    links = [{"link": link, "holds": what} for link, what in report.links]
    found = {"proved": broken is None, "broken": broken, "links": links, "not_proved": report.not_proved}
    return json.dumps(found | {"story": report.story})


def check(data: bytes, key: str | Trust, allowed: list[str], answer: Path | None, announced: str = "") -> Report:
    """A receipt or a bundle, by what it says it is. Raises Unreadable, OSError."""
    receipt = receipt_in(data)
    if receipt:
        return verify_receipt(receipt, key, answer.read_bytes() if answer else None, announced)
    if answer is not None:
        raise Unreadable("--answer goes with a receipt")
    return verify(data, key, allowed, announced)


def refuse_what_would_be_ignored(options: argparse.Namespace) -> None:
    """Who asks for a check that is not made must not read PROVED. Raises Unreadable."""
    if options.since and not options.ledger:
        raise Unreadable("--since goes with --ledger: only a whole copy shows that the ledger has grown from it")
    if options.answer and not options.bundle:
        raise Unreadable("--answer goes with a receipt")
    if options.certificate and options.witness:
        raise Unreadable("--witness does not go with --certificate: witnesses cosign checkpoints, not certificates")


def unasked(options: argparse.Namespace) -> list[str]:
    """What a reader might take for proved, and could have asked for."""
    found = []
    if not options.witness:
        found.append("that others are shown this same ledger: no witness was asked for (--witness)")
    if options.ledger and not options.since:
        found.append("that it was not rewritten and signed again: no checkpoint that was kept was given (--since)")
    return [] if options.certificate else found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="macadam_verify", description="Checks a Macadam proof bundle, offline.")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("bundle", type=Path, nargs="?", help="a proof bundle, or a receipt")
    given.add_argument("--certificate", type=Path, help="a certificate of erasure")
    given.add_argument("--ledger", type=Path, help="a copy of a whole ledger, as macadam ledger export writes it")
    parser.add_argument("--since", type=Path, help="with --ledger: file with a signed checkpoint that was kept")
    parser.add_argument("--key", type=Path, required=True, help="file with the ledger's verifier key")
    parser.add_argument("--announced", type=Path, help="file with what the ledger says about keys that took over")
    parser.add_argument("--witness", type=Path, help="file with witnesses' verifier keys")
    parser.add_argument("--quorum", type=int, default=0, help="how many of them must have cosigned; default: all")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--allow-missing", action="append", default=[], choices=MAY_BE_ALLOWED_MISSING, metavar="ROLE")
    parser.add_argument("--answer", type=Path, help="with a receipt: the answer's JSON body, as it was kept")
    options = parser.parse_args(arguments)
    try:
        refuse_what_would_be_ignored(options)
        announced, witness, since = (
            path.read_text() if path else None for path in (options.announced, options.witness, options.since)
        )
        trust = trusted(options.key.read_text(), witness, options.quorum)
        if options.certificate:
            report = verify_certificate(options.certificate.read_bytes(), trust, announced or "")
        elif options.ledger:
            report = verify_copy(options.ledger, trust, since, announced or "")
        else:
            report = check(options.bundle.read_bytes(), trust, options.allow_missing, options.answer, announced or "")
        report.not_proved += [] if report.broken else unasked(options)
    except (OSError, UnicodeDecodeError, Unreadable) as error:
        print(f"macadam_verify: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(as_json(report))
    else:
        show(report)
    return 0 if report.broken is None else 1


if __name__ == "__main__":
    sys.exit(main())
