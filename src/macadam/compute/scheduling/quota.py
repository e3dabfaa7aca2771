"""What tenants may still use: quotas in GPUs, GPU-hours and money, cohorts that lend and borrow.

The arithmetic of Kueue's cohorts (KEP-79): of its own GPUs a tenant keeps those above its lending limit for itself; the rest is the cohort's, and what
a tenant uses beyond what it keeps comes from there. GPUs that are nobody's own belong to the cohort `all`.
"""

from collections import defaultdict
from collections.abc import Iterable
from math import ceil

from macadam.compute.scheduling.types import EARLY, EVERYBODY, WHOLE, Quota, Running, Spent, State, Wait, Work

_HOUR = 3600.0


class Limits:
    """The books of one decision: changed as it starts and stops work."""

    def __init__(self, now: float, state: State) -> None:
        self.now = now
        self.capacity = sum(node.gpus for node in state.nodes) * WHOLE
        self.unlimited = not state.quotas
        self._quotas = {quota.tenant: quota for quota in state.quotas}
        self._spent = state.spent
        self.used: dict[str, int] = defaultdict(int)
        self._running: dict[str, dict[str, Running]] = defaultdict(dict)
        self._pools = self._lent()
        # What stretches that this decision ends have used: `state.spent` cannot have it yet.
        self._banked: dict[str, float] = defaultdict(float)
        self._banked_micros: dict[str, int] = defaultdict(int)
        for running in state.running:
            self._count(running)

    def quota(self, tenant: str) -> Quota:
        """Its quota: nothing of its own where it has none."""
        return self._quotas.get(tenant) or Quota(tenant=tenant, gpus=0)

    def own(self, tenant: str) -> int:
        """Thousandths of GPUs that are the tenant's. Without any quotas all share the pool."""
        return self.capacity if self.unlimited else self.quota(tenant).gpus * WHOLE

    def spent(self, tenant: str) -> Spent:
        return self._spent.get(tenant) or Spent()

    def add(self, running: Running) -> None:
        """It starts, or goes on although it had been removed."""
        self._count(running)
        self._banked[running.work.tenant] -= _ran(self.now, running)
        self._banked_micros[running.work.tenant] -= _cost(running.work, _ran(self.now, running))

    def remove(self, running: Running) -> None:
        self.used[running.work.tenant] -= running.work.demand
        del self._running[running.work.tenant][running.work.id]
        self._banked[running.work.tenant] += _ran(self.now, running)
        self._banked_micros[running.work.tenant] += _cost(running.work, _ran(self.now, running))

    def _count(self, running: Running) -> None:
        self.used[running.work.tenant] += running.work.demand
        self._running[running.work.tenant][running.work.id] = running

    def borrowed(self, tenant: str) -> int:
        return max(0, self.used[tenant] - self.own(tenant))

    def keeps(self, tenant: str) -> int:
        """Thousandths of its own GPUs that it never lends."""
        quota = self.quota(tenant)
        lends = quota.gpus if quota.lend is None else min(quota.lend, quota.gpus)
        return (quota.gpus - lends) * WHOLE if quota.cohort else quota.gpus * WHOLE

    def why_not(self, work: Work) -> Wait | None:
        """The limit that keeps this work from starting, None if none does."""
        return self._over_gpus(work) or self._over_hours(work) or self._over_money(work)

    def exhausted(self) -> Iterable[tuple[Running, str]]:
        """Running work whose tenant has used up its GPU-hours or its money."""
        for tenant, running in self._running.items():
            quota = self.quota(tenant)
            if quota.gpu_hours is not None and self._seconds(tenant) >= quota.gpu_hours * _HOUR - EARLY:
                yield from ((one, "gpu-hours") for one in running.values())
            elif quota.micros is not None and self._micros(tenant) + self._going_on(tenant) >= quota.micros:
                yield from ((one, "money") for one in running.values() if one.work.micros_per_gpu_hour)

    def exhausts_at(self) -> float | None:
        """When the first budget is used up if all goes on running."""
        instants: list[float] = []
        for tenant, running in self._running.items():
            quota = self.quota(tenant)
            gpus = sum(one.work.demand for one in running.values()) / WHOLE
            if quota.gpu_hours is not None and gpus:
                instants.append(self.now + (quota.gpu_hours * _HOUR - self._seconds(tenant)) / gpus)
            rate = sum(one.work.demand * one.work.micros_per_gpu_hour for one in running.values()) / WHOLE / _HOUR
            if quota.micros is not None and rate:
                left = quota.micros - self._micros(tenant) - self._going_on(tenant)
                instants.append(self.now + left / rate)
        return min(instants, default=None)

    # --- inside

    def _lent(self) -> dict[str, int]:
        """What each cohort has to share."""
        pools: dict[str, int] = defaultdict(int)
        for tenant, quota in self._quotas.items():
            if quota.cohort:
                pools[quota.cohort] += quota.gpus * WHOLE - self.keeps(tenant)
        owned = sum(quota.gpus for quota in self._quotas.values()) * WHOLE
        pools[EVERYBODY] += max(0, self.capacity - owned)
        return pools

    def _left_in(self, cohort: str) -> int:
        members = [tenant for tenant in self.used if self.quota(tenant).cohort == cohort]
        return self._pools[cohort] - sum(max(0, self.used[tenant] - self.keeps(tenant)) for tenant in members)

    def _over_gpus(self, work: Work) -> Wait | None:
        if self.unlimited:
            return None
        quota, wanted = self.quota(work.tenant), self.used[work.tenant] + work.demand
        most = quota.gpus if not quota.cohort else None if quota.borrow is None else quota.gpus + quota.borrow
        if most is not None and wanted > most * WHOLE:
            words = f"{work.tenant} uses {_gpus(self.used[work.tenant])} GPUs and may use {most}; this needs {_gpus(work.demand)}."
            return Wait(reason="limit", words=words, needs=wanted - most * WHOLE)
        before = max(0, self.used[work.tenant] - self.keeps(work.tenant))
        more = max(0, wanted - self.keeps(work.tenant)) - before
        left = self._left_in(quota.cohort) if more else 0
        if more > left:
            words = f"It needs {_gpus(more)} GPUs of cohort {quota.cohort!r}, where {_gpus(max(0, left))} are left to borrow."
            return Wait(reason="cohort", words=words, needs=more - left)
        return None

    def _over_hours(self, work: Work) -> Wait | None:
        limit = self.quota(work.tenant).gpu_hours
        if limit is None:
            return None
        used = self._seconds(work.tenant) + sum(_left(self.now, one) for one in self._running[work.tenant].values())
        needs = max(0.0, work.time_limit - work.attained) * work.demand / WHOLE
        if used + needs <= limit * _HOUR and used < limit * _HOUR - EARLY:
            return None
        words = f"{work.tenant} has used or reserved {used / _HOUR:.1f} of its {limit:g} GPU-hours; this may take {needs / _HOUR:.1f}."
        return Wait(reason="gpu-hours", words=words)

    def _over_money(self, work: Work) -> Wait | None:
        limit = self.quota(work.tenant).micros
        if limit is None or not work.micros_per_gpu_hour:
            return None
        used = self._micros(work.tenant) + sum(
            _cost(one.work, _left(self.now, one) + _grace(one.work)) for one in self._running[work.tenant].values()
        )
        needs = _cost(work, max(0.0, work.time_limit - work.attained) * work.demand / WHOLE + _grace(work))
        if used + needs <= limit and used < limit:
            return None
        words = f"{work.tenant} has spent or reserved {used / 1e6:.2f} of its {limit / 1e6:.2f}; this may cost {needs / 1e6:.2f}."
        return Wait(reason="money", words=words)

    def _seconds(self, tenant: str) -> float:
        """GPU-seconds used so far, those of running work included."""
        return (
            self.spent(tenant).gpu_seconds
            + self._banked[tenant]
            + sum(_ran(self.now, one) for one in self._running[tenant].values())
        )

    def _going_on(self, tenant: str) -> int:
        """What running work would still cost if all of it were asked to stop now."""
        return sum(_cost(one.work, _grace(one.work)) for one in self._running[tenant].values())

    def _micros(self, tenant: str) -> int:
        running = self._running[tenant].values()
        return (
            self.spent(tenant).micros
            + self._banked_micros[tenant]
            + sum(_cost(one.work, _ran(self.now, one)) for one in running)
        )


def _grace(work: Work) -> float:
    """GPU-seconds that it may still take once it is asked to stop."""
    return work.grace * work.demand / WHOLE


def _ran(now: float, running: Running) -> float:
    """GPU-seconds of this stretch."""
    return max(0.0, now - running.started) * running.work.demand / WHOLE


def _left(now: float, running: Running) -> float:
    """GPU-seconds that its time limit still allows, and that are reserved for it."""
    return max(0.0, running.work.time_limit - running.attained(now)) * running.work.demand / WHOLE


def _cost(work: Work, gpu_seconds: float) -> int:
    """Millionths of the currency, rounded up: a budget never looks fuller than it is."""
    return ceil(gpu_seconds * work.micros_per_gpu_hour / _HOUR)


def _gpus(milli: int) -> str:
    return f"{milli / WHOLE:g}"
