"""Requests out of JSON lines: the access log of an OpenAI-compatible server, or a trace in the form of Mooncake's.

One line after another, each checked and none longer than a limit, so that a log of any size can be given. What cannot be
a request is refused with its line; what is none (an error, a health check) is left out and counted, up to a twentieth:
a load that was counted too small is worse than no answer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from macadam.errors import SourceInvalid, TooLarge

MOST_ROWS = 5_000_000
MOST_TOKENS = 10_000_000  # of one request; above, a column was mistaken for another
MOONCAKE_BLOCK = 512  # tokens of one of its hash_ids (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces)

_LONGEST = 1_000_000  # bytes of a line
_MOST_IDS = 50_000_000
_LEFT_OUT = 0.05  # of the lines may say nothing of tokens
_TIMES = ("timestamp", "time", "@timestamp", "ts", "start_time", "created_at", "created")
_PROMPTS = ("prompt_tokens", "input_tokens")  # Chat Completions' name and Responses'
_OUTPUTS = ("completion_tokens", "output_tokens")
_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_FAILED = 400  # HTTP statuses from there on
_END = 1e20  # no Unix time, in whatever unit
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3), (1e8, 1.0))  # from which number on Unix time counts how many a second


@dataclass(kw_only=True, slots=True)
class Lines:
    """What a file says. rows: seconds (of any origin), tokens read and made, ids of blocks. empty: lines without tokens.
    twice: lines whose id was seen before. cached: tokens that the server says it had read before, -1 if it never says.
    """

    rows: list[tuple[float, int, int, tuple[int, ...]]] = field(default_factory=list)
    empty: int = 0
    twice: int = 0
    cached: int = -1
    unit: int = 0


def are_these(path: Path) -> bool:
    """Whether a file looks like JSON lines. Raises SourceInvalid if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error


def read(path: Path) -> Lines:
    """Raises SourceInvalid with the line, TooLarge."""
    found, seen, unknown, ids = Lines(), set[int](), 0, 0
    try:
        with path.open("rb") as file:
            for number, said in _objects(file, path):
                if number > MOST_ROWS:
                    raise TooLarge(f"{path} has more than {MOST_ROWS} lines.", next_step="Give a part of it.")
                where = f"{path}, line {number}"
                if "input_length" in said:
                    found.unit = MOONCAKE_BLOCK
                    row = _of_trace(said, where)
                    ids += len(row[3])
                    if ids > _MOST_IDS:
                        raise TooLarge(f"{path} has more than {_MOST_IDS} ids.", next_step="Give a part of it.")
                    _keep(found, row)
                    continue
                if isinstance(named := said.get("id"), str):
                    if hash(named) in seen:  # delivered twice, served once
                        found.twice += 1
                        continue
                    seen.add(hash(named))
                usage = _usage(said)
                if usage is None:
                    found.empty += 1
                    unknown += 0 if _failed(said) else 1
                else:
                    _keep(found, _of_log(said, usage, where, found))
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    _check(found, unknown, path)
    return found


def _check(found: Lines, unknown: int, path: Path) -> None:
    lines = len(found.rows) + found.empty
    if unknown > _LEFT_OUT * lines:
        raise SourceInvalid(
            f"{path}: {unknown} of {lines} lines say nothing of usage and of no failure either; the load would be counted too small.",
            next_step='Log "usage" for each answer (streamed ones have it with stream_options.include_usage), and only answers.',
        )
    if found.unit and any(not row[3] for row in found.rows) and any(row[3] for row in found.rows):
        raise SourceInvalid(f"{path}: some lines have ids of blocks and some have none.", next_step="Give all or none.")


def _keep(found: Lines, row: tuple[float, int, int, tuple[int, ...]]) -> None:
    if row[1] > 0 and row[2] > 0:
        found.rows.append(row)
    else:
        found.empty += 1


def _objects(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            raise TooLarge(f"{path}, line {number} has more than {_LONGEST} bytes.", next_step="Leave out the texts.")
        line = line.strip() if number > 1 else line.strip().removeprefix(b"\xef\xbb\xbf")
        if not line:
            continue
        try:
            yield number, msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SourceInvalid(
                f"{path}, line {number} is no JSON object: {error}.", next_step="Correct the line."
            ) from error


def _of_trace(said: dict[str, Any], where: str) -> tuple[float, int, int, tuple[int, ...]]:
    """Mooncake's: timestamp in ms since the start, input_length, output_length, hash_ids."""
    at, ids = said.get("timestamp"), said.get("hash_ids", [])
    prompt, output = _count(said, ("input_length",), where), _count(said, ("output_length",), where)
    if not isinstance(at, (int, float)) or isinstance(at, bool) or not 0 <= at < math.inf:
        raise _wrong(where, f"timestamp is {at!r}", "milliseconds since the start")
    if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise _wrong(where, "hash_ids are no list of whole numbers", "one for each block of the prompt")
    if ids and len(ids) != -(-prompt // MOONCAKE_BLOCK):
        raise _wrong(where, f"{len(ids)} hash_ids for {prompt} tokens", f"one for each {MOONCAKE_BLOCK} tokens begun")
    return at / 1000, prompt, output, tuple(ids)


def _of_log(
    said: dict[str, Any], usage: dict[str, Any], where: str, found: Lines
) -> tuple[float, int, int, tuple[int, ...]]:
    prompt, output = _count(usage, _PROMPTS, where), _count(usage, _OUTPUTS, where)
    details = next((usage[name] for name in _DETAILS if isinstance(usage.get(name), dict)), None)
    if details is not None and details.get("cached_tokens") is not None:
        cached = _count(details, ("cached_tokens",), where)
        if cached > prompt:
            raise _wrong(where, f"{cached} tokens of {prompt} were cached", "no more than the prompt has")
        found.cached = max(found.cached, 0) + cached
    return _time(said, where), prompt, output, ()


def _usage(said: dict[str, Any]) -> dict[str, Any] | None:
    """Of the line itself, or of the response or body that it holds."""
    for holder in (said, said.get("response"), said.get("body")):
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            usage: dict[str, Any] = holder["usage"]
            return usage
    return None


def _failed(said: dict[str, Any]) -> bool:
    status = said.get("status", said.get("status_code"))
    return bool(said.get("error")) or (isinstance(status, int) and status >= _FAILED)


def _time(said: dict[str, Any], where: str) -> float:
    """Seconds since 1970. A time without a zone is UTC."""
    response = said.get("response")
    holders = (said, response) if isinstance(response, dict) else (said,)
    value = next((holder[name] for holder in holders for name in _TIMES if holder.get(name) is not None), None)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError as error:
            raise _wrong(where, f"the time is {value!r}", "ISO 8601, or Unix seconds") from error
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = next((unit for least, unit in _UNITS if value >= least), None)
        if unit is not None and value < _END:
            return value / unit
    raise _wrong(where, f"the time is {value!r}", f"ISO 8601 or Unix seconds as one of {', '.join(_TIMES)}")


def _count(said: dict[str, Any], names: tuple[str, ...], where: str) -> int:
    value = next((said[name] for name in names if said.get(name) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise _wrong(where, f"{names[0]} is {value!r}", f"a whole number of 0 to {MOST_TOKENS}")
    return value


def _wrong(where: str, what: str, expected: str) -> SourceInvalid:
    return SourceInvalid(f"{where}: {what}; expected: {expected}.", next_step="Correct the line.")
