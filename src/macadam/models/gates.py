"""gates.yaml: what a version must show before a protected alias may point to it; parsing and judging. Pure.

metrics:
roc_auc: {at_least: 0.76, bound: lower}      # bound: value (default), lower or upper end of the 95% interval
calibration_error: {at_most: 0.05}
slices:
carrier: {min_rows: 500, roc_auc: {at_least: 0.6}}
equality: {max_difference: 0.00001}            # exported against Python model
compare_to_champion: {metric: roc_auc, not_worse_by: 0.005}
approvals: {required: 1, not_author: true}
holdout: june                                  # name of the training set that counts
threshold: 0.5                                 # probability from which on `accuracy` counts a row as positive
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal, NoReturn

import msgspec
import yaml

from macadam.errors import InvalidInput
from macadam.models.metrics import HIGHER_IS_BETTER
from macadam.models.types import Approval, Check, Equality, Evaluation, Interval, ModelVersion, Slice, Thresholds

_BOUNDS = ("value", "lower", "upper")
_MIN_ROWS = 100
_SECTIONS = ("metrics", "slices", "equality", "compare_to_champion", "approvals", "holdout", "threshold")


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's limits. bound: which figure must keep them."""

    metric: str
    at_least: float | None
    at_most: float | None
    bound: Literal["value", "lower", "upper"]

    def __str__(self) -> str:
        limits = [f"at least {self.at_least:g}" if self.at_least is not None else ""]
        limits.append(f"at most {self.at_most:g}" if self.at_most is not None else "")
        end = "" if self.bound == "value" else f" at the {self.bound} end of its interval"
        return " and ".join(filter(None, limits)) + end

    def holds(self, found: Interval) -> bool:
        figure = {"value": found.value, "lower": found.low, "upper": found.high}[self.bound]
        # Written so that NaN keeps no limit.
        high_enough = self.at_least is None or figure >= self.at_least
        return high_enough and (self.at_most is None or figure <= self.at_most)


class SliceRule(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that each slice of a column must keep; slices under min_rows are not judged."""

    column: str
    min_rows: int
    bounds: tuple[Bound, ...]


class ChampionRule(msgspec.Struct, frozen=True, kw_only=True):
    """How much worse than the champion a version may be, in the metric's unit."""

    metric: str
    not_worse_by: float


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """gates.yaml, parsed. holdout: '' = any training set."""

    metrics: tuple[Bound, ...]
    slices: tuple[SliceRule, ...] = ()
    max_difference: float | None = None
    champion: ChampionRule | None = None
    approvals: int = 1
    not_author: bool = True
    holdout: str = ""
    threshold: float = 0.5

    @property
    def slice_rows(self) -> dict[str, int]:
        """Column → smallest slice that is measured."""
        return {rule.column: rule.min_rows for rule in self.slices}


# --- parsing


class _Loader(yaml.SafeLoader):
    """YAML without its trap: a key that is written twice is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - as in yaml
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                _refuse(str(key), f"is there twice (line {key_node.start_mark.line + 1})", "Keep one of them.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Rules:
    """Reads gates.yaml. Raises InvalidInput with the path of what does not fit."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InvalidInput(f"gates.yaml is no YAML: {error}", next_step="Correct it at the place named.") from error
    top = _mapping(document, "gates.yaml", _SECTIONS)
    champion = _mapping(top.get("compare_to_champion", {}), "compare_to_champion", ("metric", "not_worse_by"))
    equality = _mapping(top.get("equality", {}), "equality", ("max_difference",))
    approvals = _mapping(top.get("approvals", {}), "approvals", ("required", "not_author"))
    bounds = _bounds(top.get("metrics"), "metrics")
    if not bounds:
        _refuse("metrics", "is missing", "Name at least one metric that a version must reach.")
    return Rules(
        metrics=bounds,
        slices=tuple(_slice_rules(top.get("slices", {}))),
        max_difference=_number(equality["max_difference"], "equality.max_difference") if equality else None,
        champion=_champion(champion) if champion else None,
        approvals=_count(approvals.get("required", 1), "approvals.required", least=0),
        not_author=_truth(approvals.get("not_author", True), "approvals.not_author"),
        holdout=_text(top.get("holdout", ""), "holdout"),
        threshold=_share(top.get("threshold", 0.5), "threshold"),
    )


def _bounds(value: object, path: str) -> tuple[Bound, ...]:
    found = _mapping({} if value is None else value, path, tuple(HIGHER_IS_BETTER))
    return tuple(_bound(name, limits, f"{path}.{name}") for name, limits in found.items())


def _bound(metric: str, value: object, path: str) -> Bound:
    limits = _mapping(value, path, ("at_least", "at_most", "bound"))
    if not {"at_least", "at_most"} & limits.keys():
        _refuse(path, "has no limit", "Add at_least or at_most.")
    which = limits.get("bound", "value")
    if which not in _BOUNDS:
        _refuse(f"{path}.bound", f"is {which!r}", f"Write one of: {', '.join(_BOUNDS)}.")
    return Bound(
        metric=metric,
        at_least=_number(limits["at_least"], f"{path}.at_least") if "at_least" in limits else None,
        at_most=_number(limits["at_most"], f"{path}.at_most") if "at_most" in limits else None,
        bound=which,
    )


def _slice_rules(value: object) -> Iterator[SliceRule]:
    for column, rule in _mapping(value, "slices", ()).items():
        path = f"slices.{column}"
        limits = _mapping(rule, path, ("min_rows", *HIGHER_IS_BETTER))
        bounds = {name: bound for name, bound in limits.items() if name != "min_rows"}
        if not bounds:
            _refuse(path, "names no metric", "Add one, such as roc_auc: {at_least: 0.6}.")
        yield SliceRule(
            column=column,
            min_rows=_count(limits.get("min_rows", _MIN_ROWS), f"{path}.min_rows", least=1),
            bounds=_bounds(bounds, path),
        )


def _champion(found: dict[str, Any]) -> ChampionRule:
    metric = found.get("metric")
    if metric not in HIGHER_IS_BETTER:
        _refuse("compare_to_champion.metric", f"is {metric!r}", f"Write one of: {', '.join(HIGHER_IS_BETTER)}.")
    allowed = _number(found.get("not_worse_by", 0), "compare_to_champion.not_worse_by")
    if allowed < 0:
        _refuse("compare_to_champion.not_worse_by", f"is {allowed:g}", "Write how much worse it may be, from 0 on.")
    return ChampionRule(metric=metric, not_worse_by=allowed)


def _mapping(value: object, path: str, known: tuple[str, ...]) -> dict[str, Any]:
    """known: the keys that are allowed, () = any text."""
    if not isinstance(value, dict):
        _refuse(
            path,
            f"is {value!r}, expected names with values",
            "Write names with values, such as roc_auc: {at_least: 0.76}.",
        )
    for key in value:
        if not isinstance(key, str) or (known and key not in known):
            _refuse(f"{path}: {key}", "is not known", f"Use any of: {', '.join(known) or 'names'}.")
    return value


def _number(value: object, path: str) -> float:
    if isinstance(value, str):  # YAML 1.1 takes 1e-5, without a point, for text
        try:
            value = float(value)
        except ValueError:
            _refuse(path, f"is {value!r}, expected a number", "Write it with digits, such as 0.76.")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):  # noqa: PLR0124 - NaN
        _refuse(path, f"is {value!r}, expected a number", "Write it with digits, such as 0.76.")
    return float(value)


def _share(value: object, path: str) -> float:
    number = _number(value, path)
    if not 0 <= number <= 1:
        _refuse(path, f"is {number:g}", "Write a probability from 0 to 1.")
    return number


def _count(value: object, path: str, *, least: int) -> int:
    if type(value) is not int or value < least:
        _refuse(path, f"is {value!r}", f"Write a whole number from {least} on.")
    return value


def _truth(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        _refuse(path, f"is {value!r}", "Write true or false.")
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        _refuse(path, f"is {value!r}", "Write the name of a training set.")
    return value


def _refuse(path: str, what: str, next_step: str) -> NoReturn:
    raise InvalidInput(f"In gates.yaml, {path} {what}.", next_step=next_step, details={"path": path})


# --- judging


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a version when the gate is asked. evaluations: of it, newest first; champion: the reference
    of the present one, '' if there is none.
    """

    version: ModelVersion
    thresholds: Thresholds | None
    evaluations: tuple[Evaluation, ...]
    equality: Equality | None
    approvals: tuple[Approval, ...]
    champion: str


APPROVALS = "approvals"
"""The criterion that a person fulfils; all others are measured."""


def counted(rules: Rules, facts: Facts) -> Evaluation | None:
    """The evaluation that the gate goes by: the newest under the thresholds in force, on the declared holdout."""
    for found in facts.evaluations:
        under = facts.thresholds is not None and found.thresholds == facts.thresholds.ref
        if under and (not rules.holdout or _set_name(found.training_set) == rules.holdout):
            return found
    return None


def counting(rules: Rules, facts: Facts) -> tuple[Approval, ...]:
    """The approvals that count: of this artifact, and not by who made it."""
    makers = {facts.version.author, facts.version.trainer} if rules.not_author else set()
    return tuple(a for a in facts.approvals if a.artifact == facts.version.artifact and a.approver not in makers)


def judge(rules: Rules | None, facts: Facts) -> tuple[Check, ...]:
    """All that the gate looks at, in order. rules: None if no thresholds are declared, which refuses."""
    if rules is None:
        text = f"no thresholds are declared for {facts.version.model}: declare gates.yaml"
        return (Check(criterion="thresholds", passed=False, text=text),)
    evaluation = counted(rules, facts)
    if evaluation is None:
        measured: tuple[Check, ...] = (_not_evaluated(rules, facts),)
    else:
        measured = (
            _disjoint(evaluation),
            *_overall(rules, evaluation),
            *(check for rule in rules.slices for check in _sliced(rule, evaluation)),
            *_against_champion(rules, evaluation, facts),
        )
    return (*measured, *_equal(rules, facts), _approved(rules, facts))


def _not_evaluated(rules: Rules, facts: Facts) -> Check:
    where = f" on a training set called {rules.holdout}" if rules.holdout else ""
    under = facts.thresholds.ref if facts.thresholds else ""
    text = f"{facts.version.ref} has no evaluation under {under}{where}"
    if facts.evaluations:
        latest = facts.evaluations[0]
        text += f"; its latest is on {latest.training_set} under {latest.thresholds}"
    return Check(criterion="evaluation", passed=False, text=text)


def _disjoint(evaluation: Evaluation) -> Check:
    seen = evaluation.overlap
    return Check(
        criterion="disjoint",
        passed=seen == 0,
        text=f"{seen} of {evaluation.rows} evaluated rows were seen in training"
        if seen
        else "no evaluated row was seen in training",
        required="0",
        found=str(seen),
    )


def _overall(rules: Rules, evaluation: Evaluation) -> Iterator[Check]:
    for bound in rules.metrics:
        yield _kept(f"metrics.{bound.metric}", bound, evaluation.metrics[bound.metric], bound.metric)


def _sliced(rule: SliceRule, evaluation: Evaluation) -> Iterator[Check]:
    slices = [s for s in evaluation.slices if s.column == rule.column]
    judged = [s for s in slices if s.metrics]
    if not judged:
        text = f"no slice of {rule.column} has the {rule.min_rows} rows that its rule asks for"
        yield Check(criterion=f"slices.{rule.column}", passed=False, text=text)
    for one in judged:
        yield from _slice_checks(rule, one)


def _slice_checks(rule: SliceRule, one: Slice) -> Iterator[Check]:
    for bound in rule.bounds:
        name = f"{bound.metric} of {one.column} {one.value} ({one.rows} rows)"
        yield _kept(f"slices.{one.column}.{one.value}.{bound.metric}", bound, one.metrics[bound.metric], name)


def _kept(criterion: str, bound: Bound, found: Interval, name: str) -> Check:
    shown = f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
    passed = bound.holds(found)
    verb = "is" if passed else "must be"
    text = f"{name} {verb} {bound}: found {shown}"
    return Check(criterion=criterion, passed=passed, text=text, required=str(bound), found=shown)


def _against_champion(rules: Rules, evaluation: Evaluation, facts: Facts) -> Iterator[Check]:
    rule = rules.champion
    if rule is None or facts.champion in ("", facts.version.ref):
        return
    criterion, required = "compare_to_champion", f"not worse by more than {rule.not_worse_by:g}"
    comparison = evaluation.comparison
    if comparison is None or comparison.champion != facts.champion:
        text = f"it has not been compared with the present champion {facts.champion}: evaluate it again"
        yield Check(criterion=criterion, passed=False, text=text, required=required)
    elif rule.metric not in comparison.metrics:
        text = f"it cannot be compared with {facts.champion}: {comparison.note}"
        yield Check(criterion=criterion, passed=False, text=text, required=required)
    else:
        yield _not_worse(rule, comparison.metrics[rule.metric], facts.champion, required)


def _not_worse(rule: ChampionRule, difference: Interval, champion: str, required: str) -> Check:
    better = difference.value if HIGHER_IS_BETTER[rule.metric] else -difference.value
    passed = better >= -rule.not_worse_by
    shown = f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    text = f"{rule.metric} against {champion}: {shown}, {'' if passed else 'must be '}{required}"
    return Check(criterion="compare_to_champion", passed=passed, text=text, required=required, found=shown)


def _equal(rules: Rules, facts: Facts) -> Iterator[Check]:
    if rules.max_difference is None:
        return
    required = f"at most {rules.max_difference:g}"
    if facts.equality is None:
        text = "the run did not compare its ONNX with the Python model"
        yield Check(criterion="equality", passed=False, text=text, required=required)
        return
    found = facts.equality.largest_difference
    text = f"ONNX and Python model differ by {found:.2g} on {facts.equality.rows} rows, allowed is {rules.max_difference:g}"
    passed = found <= rules.max_difference
    yield Check(criterion="equality", passed=passed, text=text, required=required, found=f"{found:.3g}")


def _approved(rules: Rules, facts: Facts) -> Check:
    by = [a.approver for a in counting(rules, facts)]
    who = " by someone other than its author" if rules.not_author else ""
    passed = len(by) >= rules.approvals
    said = f"approved by {', '.join(by)}" if by else "not approved"
    text = said if passed and by else f"{said}: {len(by)} of {rules.approvals} approvals{who}"
    return Check(criterion=APPROVALS, passed=passed, text=text, required=str(rules.approvals), found=str(len(by)))


def reasons(checks: tuple[Check, ...]) -> tuple[str, ...]:
    """What refuses, in words."""
    return tuple(check.text for check in checks if not check.passed)


def as_details(checks: tuple[Check, ...]) -> list[Mapping[str, object]]:
    """What refuses, for scripts and for the ledger."""
    return [msgspec.to_builtins(check) for check in checks if not check.passed]


def _set_name(ref: str) -> str:
    return ref.partition(":")[2].partition("@")[0]
