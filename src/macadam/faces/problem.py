"""Errors as problem details (RFC 9457), and back: the one shape that HTTP, `--json` and the client share."""

import http
from collections.abc import Mapping

from macadam.errors import InvalidInput, MacadamError, Temporary, Unavailable

MEDIA_TYPE = "application/problem+json"
_TYPE = "urn:macadam:problem:"


class MethodNotAllowed(InvalidInput):
    """The path exists, for other methods."""

    code, status = "method-not-allowed", 405


class Unexpected(MacadamError):
    """A fault of the platform itself. It has an id under which the log tells the rest."""

    code, exit_code = "unexpected", 70


def of_error(error: MacadamError) -> dict[str, object]:
    """The problem details of an error. `next` and `details` are left out if empty."""
    said: dict[str, object] = {
        "type": _TYPE + error.code,
        "title": error.code.replace("-", " ").capitalize(),
        "status": error.status,
        "detail": error.what,
        "code": error.code,
    }
    if error.next_step:
        said["next"] = error.next_step
    if error.details:
        said["details"] = error.details
    return said


def to_error(said: Mapping[str, object], status: int) -> MacadamError:
    """The error that a server's problem details stand for, of the same class as it was raised there.

    An answer of another shape (a proxy's page) becomes Unavailable for 502 to 504, else Unexpected.
    """
    kind = {kind.code: kind for kind in classes()}.get(str(said.get("code", "")))
    details = said.get("details")
    if kind is None:
        kind = Unavailable if status in (502, 503, 504) else Unexpected
    what = str(said.get("detail") or f"The server answered {status} {_phrase(status)}.")
    return kind(what, next_step=str(said.get("next", "")), details=details if isinstance(details, dict) else None)


def is_temporary(error: MacadamError) -> bool:
    """Whether the same call may work a moment later. A full disk does not empty itself within a retry."""
    return isinstance(error, Temporary) and error.status in (
        http.HTTPStatus.SERVICE_UNAVAILABLE,
        http.HTTPStatus.TOO_MANY_REQUESTS,
    )


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def classes(root: type[MacadamError] = MacadamError) -> list[type[MacadamError]]:
    """Every class of the tree that is loaded, parents before children."""
    return [root, *(kind for child in root.__subclasses__() for kind in classes(child))]
