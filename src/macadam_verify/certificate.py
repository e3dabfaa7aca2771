"""Certificates of erasure (macadam-erasure/1): a signed note of the ledger that says what was destroyed, and what was not.

It proves who said so, and that no word was changed since; that keys are gone everywhere, no signature can prove.
"""

import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from macadam_verify.signed import SIGNATURE, Broken, Report, Trust, read_base64

FORMAT = "macadam-erasure/1"
FACTS = ("ledger", "erasure", "project", "at", "by", "request", "leaf", "predictions", "online rows", "keys rewrapped")
LISTS = ("subject", "destroyed", "not covered")


def is_certificate(data: bytes) -> bool:
    return data.startswith(f"{FORMAT}\n".encode())


def links(data: bytes, trust: Trust, report: Report) -> None:
    """Checks form and signature, and tells what it says. Breaks a link; ValueError if a part is not UTF-8 or base64."""
    text, blank, below = data.decode().rpartition("\n\n")
    signatures = below.split("\n")
    if not blank or signatures.pop() != "" or not signatures:
        raise Broken("form", "a certificate is a text, an empty line, and signature lines")
    facts, lists = read(text)
    signed_by_ledger(text + "\n", signatures, facts["ledger"], trust, report)
    report.links.append(("certificate", f"erasure {facts['erasure']} of project {facts['project']}"))
    report.not_proved.append("that no copy of what was destroyed exists elsewhere: no signature can prove that")
    report.not_proved.append(f"that leaf {facts['leaf']} records it, as it says: look for it in a copy of the ledger")
    report.story = [
        f"{facts['ledger']} certifies: {facts['by']} erased a person from project {facts['project']} at {facts['at']},",
        f"  under the request {facts['request']}. Leaf {facts['leaf']} of the ledger records it.",
        f"{facts['predictions']} predictions and {facts['online rows']} online rows.",
        f"{facts['keys rewrapped']} keys of others were wrapped anew.",
        *(f"Records know the person as {name}." for name in lists["subject"]),
        *(f"Destroyed: {what}." for what in lists["destroyed"]),
        *(f"Not covered: {what}." for what in lists["not covered"]),
    ]


def read(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Each fact once and in its order, then the lists."""
    lines = text.split("\n")[1:]
    facts = dict(line.partition(": ")[::2] for line in lines[: len(FACTS)])
    if tuple(facts) != FACTS or not all(facts.values()):
        raise Broken("form", f"a certificate has the lines {', '.join(FACTS)}, in this order")
    lists: dict[str, list[str]] = {name: [] for name in LISTS}
    for line in lines[len(FACTS) :]:
        name, colon, value = line.partition(": ")
        if name not in lists or not colon or not value:
            raise Broken("form", f"{line!r} is no line of a certificate")
        lists[name].append(value)
    if not lists["destroyed"] or not lists["not covered"]:
        raise Broken("form", "it does not say what was destroyed, and what was not")
    return facts, lists


def signed_by_ledger(text: str, signatures: list[str], ledger: str, trust: Trust, report: Report) -> None:
    """Certificate signature (https://c2sp.org/signed-note)"""
    link, signers = "certificate signature", []
    for line in signatures:
        match = re.fullmatch("— ([^ +]+) ([^ ]+)", line)
        if not match:
            raise Broken(link, f"{line!r} is not a signature line")
        name, signature = match[1], read_base64(match[2], f"the signature of {match[1]}")
        key = trust.keys.get((name, signature[:4]))
        if key is None or key.data[0] != SIGNATURE:
            report.not_proved.append(f"the signature of {name} on the certificate (its key was not given)")
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.data[1:]).verify(signature[4:], text.encode())
        except InvalidSignature:
            raise Broken(link, f"the signature of {name} does not fit the certificate") from None
        if key.until is not None:
            report.not_proved.append(f"that it was signed before leaf {key.until} retired the key of {name}")
        signers.append(name)
    if ledger not in signers or ledger != trust.origin:
        raise Broken(link, f"the ledger {ledger!r} has not signed it with a key that was given")
    report.links.append((link, f"{ledger} signed it"))
