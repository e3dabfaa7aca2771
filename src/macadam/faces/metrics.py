"""Counts requests and their seconds per operation, and says them in Prometheus' text format (version 0.0.4)."""

import threading
from bisect import bisect_left

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper bounds in seconds: from a cached read to a training run inside a call.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)


class Metrics:
    """One process's counters. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def observe(self, operation: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        with self._lock:
            key = (operation, status)
            self._requests[key] = self._requests.get(key, 0) + 1
            self._seconds[operation] = self._seconds.get(operation, 0.0) + seconds
            buckets = self._buckets.setdefault(operation, [0] * (len(BOUNDS) + 1))
            buckets[bisect_left(BOUNDS, seconds)] += 1

    def text(self) -> str:
        with self._lock:
            return "\n".join([*self._request_lines(), *self._second_lines(), ""])

    def _request_lines(self) -> list[str]:
        name = "macadam_requests_total"
        lines = [f"# HELP {name} Requests answered, by operation and status.", f"# TYPE {name} counter"]
        for (operation, status), count in sorted(self._requests.items()):
            lines.append(f'{name}{{operation="{operation}",status="{status}"}} {count}')
        return lines

    def _second_lines(self) -> list[str]:
        name = "macadam_request_seconds"
        lines = [f"# HELP {name} Seconds from a request's first byte to its answer.", f"# TYPE {name} histogram"]
        for operation, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(f'{name}_bucket{{operation="{operation}",le="{bound}"}} {total}')
            lines.append(f'{name}_sum{{operation="{operation}"}} {self._seconds[operation]:.6f}')
            lines.append(f'{name}_count{{operation="{operation}"}} {total}')
        return lines
