"""Your own measurements: what an engine did on a GPU under several loads, and the efficiencies that follow.

Read as `vllm bench serve --save-result` writes it (a JSON object a file, or one a line) and as SGLang's bench_serving does
(JSON lines). Each row tells the mean time of each further token at the load that it ran under, and one without company
also the time to the first. Efficiencies are fitted to those, never above the data sheet's peak, and judged by leaving out one
row after another. A row that beats physics is no measurement of what it is said to be of, and is refused.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from macadam.compute.catalogue import llms
from macadam.compute.catalogue.gpus import Gpu
from macadam.compute.catalogue.llms import Llm
from macadam.compute.rightsizing import arrivals, bounds, calibration, capacity, roofline
from macadam.compute.rightsizing.calibration import Error
from macadam.compute.rightsizing.logs import MOST_TOKENS
from macadam.compute.rightsizing.types import BYTES, Efficiency, Engine, Replica
from macadam.errors import InvalidInput, NotFound, SourceInvalid, TooLarge

_LARGEST = 64_000_000  # bytes of a file; --save-detailed keeps every token's time
_MOST_ROWS = 1000
_SAME = 0.05  # by which a row's own figures may disagree
_COMPLETED = 0.9  # of the prompts must have been answered
_FULL = 0.7  # of the most requests at once: from there on the limit, not chance, says how many run
_LONG = 512  # tokens of a prompt whose first token says something of arithmetic, and not of the network
_MOST = 1e12  # of any figure
_CROWDED = (
    1.5  # times its limit that a run's own figures may say ran at once: means of a few requests do not multiply exactly
)
_DRIVER = 1.08  # a driver may report so much more memory than the data sheet
_PULL = 0.003  # how strongly what measurements say nothing of stays where published ones put it
_STEPS = (1.5, 1.2, 1.1, 1.05, 1.02, 1.01)  # factors by which the search moves
_FITTED = ("compute", "bandwidth", "overhead")
_LEAST, _SLOWEST = 0.02, 0.2  # of a peak; seconds of an iteration


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One load. name: where it stands. prompt, output: mean tokens. count: requests answered in `seconds`. ttft, tpot: mean
    seconds. limit: the most requests at once, None if only their rate was limited; at_once: all were sent at the start.
    """

    name: str
    model: str
    prompt: float
    output: float
    count: int
    seconds: float
    ttft: float
    tpot: float
    limit: int | None = None
    at_once: bool = False

    @property
    def together(self) -> float:
        """How many requests a token was made beside, its own included. By Little's law the mean number that decode is their
        rate times how long each does; one that comes at random finds that many others, one let in by a limit one less.
        """
        mean = self.count / self.seconds * (self.output - 1) * self.tpot
        full = self.at_once or (self.limit is not None and mean >= _FULL * self.limit)
        found = mean if full else mean + 1
        return max(1.0, min(found, self.limit or math.inf))


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What rows of one GPU say. before, after: how far the model is off with the published and with the fitted efficiencies,
    as in calibration.Error; left_out: with those fitted to all other rows, None of one row. models: that were served. guessed: rows
    whose model's name was not known, and was taken to be the one asked about.
    """

    gpu: str
    rows: int
    models: tuple[str, ...]
    guessed: int
    efficiency: Efficiency
    before: Error
    after: Error
    left_out: Error | None


class _Point(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a row. first: the first token's, else each further one's."""

    row: Row
    replica: Replica
    first: bool

    @property
    def seconds(self) -> float:
        return self.row.ttft if self.first else self.row.tpot


def read(path: Path) -> list[Row]:
    """Raises SourceInvalid with the row, TooLarge."""
    arrivals.refuse_packed(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise TooLarge(f"{path} has more than {_LARGEST} bytes.", next_step="Save it without --save-detailed.")
        text = path.read_bytes()
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}.", next_step="Correct the path.") from error
    found = _decoded(text, path)
    if not 1 <= len(found) <= _MOST_ROWS:
        raise SourceInvalid(f"{path} has {len(found)} rows.", next_step=f"Give 1 to {_MOST_ROWS}.")
    return [_row(said, f"{path}, row {number}") for number, said in enumerate(found, start=1)]


def fit(gpu: Gpu, rows: Sequence[tuple[Row, int]], asked: Llm, engine: Engine) -> Fit:
    """rows: with the number of GPUs that shared the model. asked: what rows are of whose model is not known by its name. Raises
    InvalidInput if a row beats physics or the model does not fit.
    """
    points, models, guessed = [], [], 0
    for row, tp in rows:
        llm, known = _model(row, asked)
        replica = Replica(llm=llm, gpu=gpu, tp=tp)
        _check(row, replica, engine)
        models.append(llm.name)
        guessed += not known
        points += [_Point(row=row, replica=replica, first=False)]
        points += [_Point(row=row, replica=replica, first=True)] if row.limit == 1 and row.prompt >= _LONG else []
    found = _fitted(points, engine)
    return Fit(
        gpu=gpu.name,
        rows=len(rows),
        models=tuple(sorted(set(models))),
        guessed=guessed,
        efficiency=found,
        before=calibration.error(_ratios(points, engine, Efficiency())),
        after=calibration.error(_ratios(points, engine, found)),
        left_out=_left_out(points, engine) if len(rows) > 1 else None,
    )


def predicted(row: Row, replica: Replica, engine: Engine, efficiency: Efficiency, *, first: bool = False) -> float:
    """Seconds that the model says."""
    pace = roofline.speed(replica, engine, efficiency)
    if first:
        return _alone(pace, engine, round(row.prompt))
    low = math.floor(row.together)
    below, above = (capacity.iteration(pace, n, row.prompt, row.output) for n in (low, low + 1))
    return below + (row.together - low) * (above - below)


def _alone(pace: roofline.Speed, engine: Engine, prompt: int) -> float:
    """Seconds to the first token of a request without company, chunk by chunk."""
    seconds, read = 0.0, 0
    while read < prompt:
        chunk = min(engine.budget, prompt - read)
        samples = int(read + chunk == prompt)
        seconds += pace.fixed + pace.matrices(chunk, samples) + pace.prompt(chunk, read) + pace.exchange * chunk
        read += chunk
    return seconds


def _ratios(points: Sequence[_Point], engine: Engine, efficiency: Efficiency) -> list[float]:
    """Measured over predicted time: above 1 the model promises too much speed."""
    return [p.seconds / predicted(p.row, p.replica, engine, efficiency, first=p.first) for p in points]


def _left_out(points: Sequence[_Point], engine: Engine) -> Error:
    found = []
    for name in dict.fromkeys(point.row.name for point in points):
        others = _fitted([point for point in points if point.row.name != name], engine)
        found += _ratios([point for point in points if point.row.name == name], engine, others)
    return calibration.error(found)


def _fitted(points: Sequence[_Point], engine: Engine) -> Efficiency:
    """Least squares of how far the logarithms are off, by a search in ever smaller steps from the published efficiencies. Two at
    a time too, since what one gains the other may have to give.
    """
    best = Efficiency()
    least = _loss(points, engine, best)
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for tried in _around(best, step):
                loss = _loss(points, engine, tried)
                if loss < least - 1e-12:
                    best, least, moved = tried, loss, True
    return best


def _around(now: Efficiency, step: float) -> list[Efficiency]:
    moves = [{name: factor} for name in _FITTED for factor in (step, 1 / step)]
    moves += [
        {one: a, other: b}
        for one, other in (("compute", "bandwidth"), ("compute", "overhead"), ("bandwidth", "overhead"))
        for a in (step, 1 / step)
        for b in (step, 1 / step)
    ]
    return [
        msgspec.structs.replace(now, **{name: _bounded(name, getattr(now, name) * by) for name, by in move.items()})
        for move in moves
    ]


def _bounded(name: str, value: float) -> float:
    """No peak is passed; and no search runs away from rows that say nothing of it."""
    return min(_SLOWEST, max(1e-5, value)) if name == "overhead" else min(1.0, max(_LEAST, value))


def _loss(points: Sequence[_Point], engine: Engine, efficiency: Efficiency) -> float:
    published = Efficiency()
    off = statistics.fmean(math.log(ratio) ** 2 for ratio in _ratios(points, engine, efficiency))
    return off + _PULL * sum(math.log(getattr(efficiency, name) / getattr(published, name)) ** 2 for name in _FITTED)


def _check(row: Row, replica: Replica, engine: Engine) -> None:
    """Raises InvalidInput if the row beats what no engine can: then it is not of this model, GPU or format."""
    roofline.kv_tokens(replica, engine)
    prompt, output = max(1, int(row.prompt)), max(1, int(row.output))
    limits = (
        ("a first token", row.ttft, bounds.first_token(replica, engine, prompt)),
        ("a further token", row.tpot, bounds.next_token(replica, engine, prompt)),
        ("all requests", row.seconds, bounds.run(replica, engine, prompt, output, row.count)),
    )
    where = f"{replica.llm.name} in {engine.weights} on {replica.tp} x {replica.gpu.name}"
    for what, took, least in limits:
        if took < least:
            raise _impossible(
                row, f"{what} in {took:.4g} s, where {where} needs {least:.4g} s at its data sheet's peak"
            )
    held = replica.llm.parameters * BYTES[engine.weights] + (row.together - 1) * row.prompt * replica.llm.kv_bytes(
        BYTES[engine.kv]
    )
    room = replica.tp * replica.gpu.memory * _DRIVER
    if held > room:
        raise _impossible(
            row, f"{row.together:.0f} requests at once, {held / 1e9:.0f} GB, where {where} has {room / 1e9:.0f}"
        )


def _impossible(row: Row, what: str) -> InvalidInput:
    return InvalidInput(
        f"{row.name} beats physics: {what}.",
        next_step=(
            "The model, the GPU, their number or the format was probably named wrongly (--model, --measured GPU:N=FILE, --weights, --kv); "
            "or prompts came from a prefix cache, or several tokens at once from speculation: measure without them."
        ),
    )


def _model(row: Row, asked: Llm) -> tuple[Llm, bool]:
    """The row's, by its name or the last part of its path; else the one that was asked about."""
    for name in (row.model, row.model.rstrip("/").rpartition("/")[2]):
        try:
            return llms.find(name), True
        except NotFound:  # a name of one's own: tried otherwise
            continue
    return asked, False


def _decoded(text: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        whole = msgspec.json.decode(text, type=dict[str, Any] | list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [_object(line, path, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return whole if isinstance(whole, list) else [whole]


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceInvalid(
            f"{path}, line {number} is no JSON object: {error}.",
            next_step="Give what vllm bench serve --save-result or sglang.bench_serving --output-file wrote.",
        ) from error


def _row(said: dict[str, Any], name: str) -> Row:
    count, seconds = _number(said, "completed", name), _number(said, "duration", name)
    if count != int(count):
        raise _wrong(name, f"completed is {count}", "a whole number")
    _consistent(said, name, count, seconds)
    limit = said.get("max_concurrency")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST):
        raise _wrong(name, f"max_concurrency is {arrivals.shown(limit)}", "a whole number of 1 or more, or null")
    rate = said.get("request_rate")
    endless = rate is None or rate == "inf" or (isinstance(rate, float) and math.isinf(rate))
    server = said.get("server_info")
    model = said.get("model_id") or (server.get("model_path") if isinstance(server, dict) else None) or ""
    row = Row(
        name=name,
        model=str(model),
        prompt=_tokens(said, "total_input_tokens", name, count),
        output=_tokens(said, "total_output_tokens", name, count),
        count=int(count),
        seconds=seconds,
        ttft=_number(said, "mean_ttft_ms", name) / 1000,
        tpot=_number(said, "mean_tpot_ms", name) / 1000,
        limit=limit,
        at_once=endless and limit is None,
    )
    _possible(row)
    return row


def _possible(row: Row) -> None:
    """A request is part of its run, and no more run at once than were let in (Little's law)."""
    each = row.ttft + (row.output - 1) * row.tpot
    most = row.limit or row.count
    if each * row.count > _CROWDED * most * row.seconds:
        raise _wrong(
            row.name,
            f"{row.count} requests of {each:.4g} s each in {row.seconds:g} s are more than {most} at once",
            "mean_ttft_ms and mean_tpot_ms in ms, duration in s, and figures of one run",
        )


def _consistent(said: dict[str, Any], name: str, count: float, seconds: float) -> None:
    """What contradicts itself, or is of another kind of run, would be fitted into nonsense."""
    rate = said.get("request_throughput")
    if isinstance(rate, (int, float)) and not abs(min(rate, _MOST) * seconds - count) <= _SAME * count:
        raise _wrong(name, f"{count:.0f} requests in {seconds:g} s and {arrivals.shown(rate)}/s", "figures of one run")
    asked = said.get("num_prompts")
    if isinstance(asked, int) and count < _COMPLETED * asked:
        raise _wrong(name, f"{count:.0f} of {asked} requests were answered", "a run in which nearly all were")
    if said.get("ramp_up_strategy"):
        raise _wrong(name, "the load grew during the run", "a row for each load")
    accepted = said.get("accept_length")
    if isinstance(accepted, (int, float)) and accepted > 1:
        raise _wrong(name, f"{arrivals.shown(accepted)} tokens were made at once by speculation", "a run without it")


def _number(said: dict[str, Any], key: str, name: str) -> float:
    value = said.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= _MOST:
        raise _wrong(name, f"{key} is {arrivals.shown(value)}", f"a number above 0, up to {_MOST:g}")
    return float(value)


def _tokens(said: dict[str, Any], key: str, name: str, count: float) -> float:
    """Of a request, in the mean."""
    each = _number(said, key, name) / count
    if not 1 <= each <= MOST_TOKENS:
        raise _wrong(name, f"{key} is {each:g} for each request", f"1 to {MOST_TOKENS}")
    return each


def _wrong(name: str, what: str, expected: str) -> SourceInvalid:
    return SourceInvalid(f"{name}: {what}; expected: {expected}.", next_step="Correct the file, or measure again.")
