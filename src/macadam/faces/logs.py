"""Structured logs: one JSON object a line, each with the trace that it belongs to (W3C Trace Context)."""

import json
import logging
import logging.handlers
import re
import secrets
from contextvars import ContextVar
from pathlib import Path

from macadam.values import instant, utc_now

LOGGER = "macadam"
_TRACEPARENT = re.compile(r"^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\Z")
_FILE_BYTES = 16 * 1024 * 1024  # a day of a busy control plane; four files are kept

trace: ContextVar[str] = ContextVar("macadam_trace", default="")


def trace_of(traceparent: str) -> str:
    """The trace id in a `traceparent` header; a new one if there is none or it is malformed.

    From https://www.w3.org/TR/trace-context/#traceparent-header: 16 bytes as hex, not all zero.
    """
    match = _TRACEPARENT.match(traceparent)
    if match and match[1] != "0" * 32 and match[2] != "0" * 16:
        return match[1]
    return secrets.token_hex(16)


_SECRET = re.compile(r"(mcd_)[A-Za-z0-9_-]{16,}")


class JsonLines(logging.Formatter):
    """Writes a record as one line. Facts are passed as `extra={"facts": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, object] = {
            "at": instant(utc_now()),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if trace.get():
            said["trace"] = trace.get()
        facts = getattr(record, "facts", None)
        if isinstance(facts, dict):
            said.update(facts)
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        # Somebody who revokes a token may name it by its secret, which then stands in the path.
        return _SECRET.sub(r"\1***", json.dumps(said, default=str))


def write_to(path: Path) -> logging.Handler:
    """Sends the platform's logs to a file that is rotated by size. Close the handler that is returned."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_FILE_BYTES, backupCount=3, encoding="utf-8")
    handler.setFormatter(JsonLines())
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return handler


def stop(handler: logging.Handler) -> None:
    """Ends what `write_to` began."""
    logging.getLogger(LOGGER).removeHandler(handler)
    handler.close()
