"""Requests out of JSON lines: the access log of an OpenAI-compatible server, or a trace in the form of Mooncake's.

One line after another, each checked and none longer than a limit, so that a log of any size can be given. What cannot be
a request is refused with its line; what is none (an error, a health check) is left out and counted, up to a twentieth:
a load that was counted too small is worse than no answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from macadam.compute.rightsizing import arrivals
from macadam.errors import SourceInvalid, TooLarge

MOST_TOKENS = 10_000_000  # of one request; above, a column was mistaken for another
MOONCAKE_BLOCK = 512  # tokens of one of its hash_ids (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces)

_MOST_IDS = 50_000_000
_LEFT_OUT = 0.05  # of the lines may say nothing of tokens
_TIMES = ("timestamp", "time", "@timestamp", "ts", "start_time", "created_at", "created")
_PROMPTS = ("prompt_tokens", "input_tokens")  # Chat Completions' name and Responses'
_OUTPUTS = ("completion_tokens", "output_tokens")
_DETAILS = ("prompt_tokens_details", "input_tokens_details")
_FAILED = 400  # HTTP statuses from there on
_END = 1e15  # ms since the start of a trace


@dataclass(kw_only=True, slots=True)
class Lines:
    """What a file says. rows: seconds (of any origin), tokens read and made, ids of blocks. empty: lines without tokens.
    twice: lines whose id was seen before. cached: tokens that the server says it had read before, -1 if it never says. unit: tokens
    of one block, 0 if there are no ids. ids: how many there are. unknown: of the empty lines, those that are no failures. logged:
    whether any line is of an access log. seen: hashes of the ids of answers.
    """

    rows: list[tuple[float, int, int, tuple[int, ...]]] = field(default_factory=list)
    empty: int = 0
    twice: int = 0
    cached: int = -1
    unit: int = 0
    ids: int = 0
    unknown: int = 0
    logged: bool = False
    seen: set[int] = field(default_factory=set)

    def keep(self, row: tuple[float, int, int, tuple[int, ...]], cached: int | None = None) -> None:
        """A request, if it has tokens. cached: those that the server says it had read before."""
        if row[1] > 0 and row[2] > 0:
            self.rows.append(row)
            if cached is not None:
                self.cached = max(self.cached, 0) + cached
        else:
            self.empty += 1


def are_these(path: Path) -> bool:
    """Whether a file looks like JSON lines. Raises SourceInvalid if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error


def read(path: Path) -> Lines:
    """Raises SourceInvalid with the line, TooLarge."""
    found = Lines()
    try:
        with path.open("rb") as file:
            for number, said in _objects(file, path):
                if number > arrivals.MOST_ROWS:
                    raise TooLarge(f"{path} has more than {arrivals.MOST_ROWS} lines.", next_step="Give a part of it.")
                _line(said, f"{path}, line {number}", found)
                if found.ids > _MOST_IDS:
                    raise TooLarge(f"{path} has more than {_MOST_IDS} ids.", next_step="Give a part of it.")
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    _check(found, path)
    return found


def _line(said: dict[str, Any], where: str, found: Lines) -> None:
    """One object of either form, and no file of both: their times have different beginnings."""
    usage = _usage(said)
    if "input_length" in said:
        found.unit = MOONCAKE_BLOCK
        _of_trace(said, where, found)
    elif usage is None:
        found.empty += 1
        found.unknown += 0 if _failed(said) else 1
    else:
        found.logged = True
        if _seen(said, found.seen):
            found.twice += 1
        else:
            _of_log(said, usage, where, found)
    if found.unit and found.logged:
        raise _wrong(where, "it is of another form than the lines before", "one of the two forms")


def _seen(said: dict[str, Any], seen: set[int]) -> bool:
    """Whether an answer was delivered twice: it was served once. A failure with its id is another attempt."""
    response = said.get("response")
    named = said.get("id") or (response.get("id") if isinstance(response, dict) else None)
    if not isinstance(named, str):
        return False
    known = hash(named) in seen
    seen.add(hash(named))
    return known


def _check(found: Lines, path: Path) -> None:
    lines = len(found.rows) + found.empty
    if found.unknown > _LEFT_OUT * lines:
        raise SourceInvalid(
            f"{path}: {found.unknown} of {lines} lines say nothing of usage and of no failure either; the load would be counted too small.",
            next_step='Log "usage" for each answer (streamed ones have it with stream_options.include_usage), and only answers.',
        )
    if found.unit and any(not row[3] for row in found.rows) and any(row[3] for row in found.rows):
        raise SourceInvalid(f"{path}: some lines have ids of blocks and some have none.", next_step="Give all or none.")


def _objects(file: BinaryIO, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while line := file.readline(arrivals.LONGEST + 1):
        number += 1
        if len(line) > arrivals.LONGEST:
            raise TooLarge(
                f"{path}, line {number} has more than {arrivals.LONGEST} bytes.", next_step="Leave out the texts."
            )
        line = line.strip() if number > 1 else line.strip().removeprefix(b"\xef\xbb\xbf")
        if not line:
            continue
        try:
            yield number, msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SourceInvalid(
                f"{path}, line {number} is no JSON object: {error}.", next_step="Correct the line."
            ) from error


def _of_trace(said: dict[str, Any], where: str, found: Lines) -> None:
    """Mooncake's: timestamp in ms since the start, input_length, output_length, hash_ids."""
    at, ids = said.get("timestamp"), said.get("hash_ids", [])
    prompt, output = _count(said, ("input_length",), where), _count(said, ("output_length",), where)
    if not isinstance(at, (int, float)) or isinstance(at, bool) or not 0 <= at < _END:
        raise _wrong(where, f"timestamp is {arrivals.shown(at)}", "milliseconds since the start")
    if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise _wrong(where, "hash_ids are no list of whole numbers", "one for each block of the prompt")
    if ids and len(ids) != -(-prompt // MOONCAKE_BLOCK):
        raise _wrong(where, f"{len(ids)} hash_ids for {prompt} tokens", f"one for each {MOONCAKE_BLOCK} tokens begun")
    if len(set(ids)) < len(
        ids
    ):  # an id stands for all tokens up to there: of two lengths, it would find what is not there
        raise _wrong(where, "one of hash_ids stands there twice", "ids of all that came before, not of a block alone")
    found.keep((at / 1000, prompt, output, tuple(ids)))
    found.ids += len(ids)


def _of_log(said: dict[str, Any], usage: dict[str, Any], where: str, found: Lines) -> None:
    prompt, output = _count(usage, _PROMPTS, where), _count(usage, _OUTPUTS, where)
    details: dict[str, Any] = next((usage[name] for name in _DETAILS if isinstance(usage.get(name), dict)), {})
    cached = _count(details, ("cached_tokens",), where) if details.get("cached_tokens") is not None else None
    if cached is not None and cached > prompt:
        raise _wrong(where, f"{cached} tokens of {prompt} were cached", "no more than the prompt has")
    found.keep((_time(said, where), prompt, output, ()), cached)


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
    """Seconds since 1970."""
    response = said.get("response")
    holders = (said, response) if isinstance(response, dict) else (said,)
    value = next((holder[name] for holder in holders for name in _TIMES if holder.get(name) is not None), None)
    try:
        return arrivals.seconds(value)
    except ValueError as error:
        raise _wrong(
            where, f"the time is {arrivals.shown(value)}", f"ISO 8601 or Unix seconds as one of {', '.join(_TIMES)}"
        ) from error


def _count(said: dict[str, Any], names: tuple[str, ...], where: str) -> int:
    value = next((said[name] for name in names if said.get(name) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise _wrong(where, f"{names[0]} is {arrivals.shown(value)}", f"a whole number of 0 to {MOST_TOKENS}")
    return value


def _wrong(where: str, what: str, expected: str) -> SourceInvalid:
    return arrivals.wrong(where, f"{what}; expected: {expected}")
