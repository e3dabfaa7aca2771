"""Names that Kubernetes, Ray and SkyPilot take, made from ours so that two of ours never become one of theirs.

A name that already fits stays as it is. Any other gets its readable part and a piece of its SHA-256. What looks like such a
made name is made anew too, or somebody could choose a project's name to meet another's.
"""

import hashlib
import re
from fractions import Fraction

from macadam.errors import InvalidInput

LABEL = 63  # RFC 1123's longest label, which is also the longest value of a Kubernetes label
_HASH = 12  # hex digits: two of a million names meet with a chance of 1 in 500
_FITS = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")
_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?\Z")
_MADE = re.compile(rf".*-h[0-9a-f]{{{_HASH}}}\Z", re.DOTALL)  # no UUID ends like this
_CORES = re.compile(r"(\d+)(m?)\Z")
_BYTES = re.compile(r"(\d+)(Ki|Mi|Gi|Ti)?\Z")
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_THOUSAND = 1000


def dns_label(text: str, *, limit: int = LABEL) -> str:
    """A DNS-1123 label (lower case, digits, '-') of at most `limit` characters, which is at least 20.

    Raises InvalidInput for an empty text.
    """
    if not text:
        raise InvalidInput("A name is empty.", next_step="Give a name.")
    if len(text) <= limit and _FITS.match(text) and not _MADE.match(text):
        return text
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower())[: limit - _HASH - 2].strip("-")
    return f"{readable or 'x'}-h{_digest(text)}"


def label_value(text: str) -> str:
    """A label's value: at most 63 characters, letters, digits, '-', '_', '.'; empty stays empty."""
    if not text or (len(text) <= LABEL and _VALUE.match(text) and not _MADE.match(text)):
        return text
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[: LABEL - _HASH - 2].strip("-_.")
    return f"{readable or 'x'}-h{_digest(text)}"


def cores(milli: int) -> str:
    """A Kubernetes quantity of processors: 1500 → '1500m', 2000 → '2'. Raises InvalidInput below nothing."""
    _refuse_negative(milli, "thousandths of a core")
    return str(milli // _THOUSAND) if milli % _THOUSAND == 0 else f"{milli}m"


def size(count: int) -> str:
    """A Kubernetes quantity of bytes, exact: 2 GiB → '2Gi', 1 → '1'. Raises InvalidInput below nothing."""
    _refuse_negative(count, "bytes")
    for unit, factor in reversed(_UNITS.items()):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def parse_quantity(text: str) -> Fraction:
    """The number that a quantity of ours stands for: cores or counts ('1500m' → 3/2) or bytes ('2Gi').

    Raises InvalidInput for the forms that Kubernetes also knows and nothing here writes, such as '1e3'.
    """
    if match := _CORES.match(text):
        return Fraction(int(match[1]), _THOUSAND if match[2] else 1)
    if match := _BYTES.match(text):
        return Fraction(int(match[1]) * _UNITS[match[2]])
    raise InvalidInput(f"{text!r} is not a quantity.", next_step="Write it as 2, 1500m, 512Mi or 2Gi.")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]


def _refuse_negative(count: int, unit: str) -> None:
    if count < 0:
        raise InvalidInput(f"{count} {unit} is less than nothing.", next_step="Give 0 or more.")
