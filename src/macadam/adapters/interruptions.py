"""Asks the cloud that this machine was bought from whether it takes the machine away: AWS, GCP and Azure.

Each answers at a link-local address that only the machine itself reaches. Nothing is asked unless a setting names the cloud: elsewhere that
address may be anybody's. It is asked in a thread of its own, so that whoever wants to know never waits for it; what was
announced stands until the cloud takes it back. No proxy is used and no redirect followed.

- AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html and rebalance-recommendations.html;
  a token first (IMDSv2). Two minutes' notice, on a best effort; to be asked every 5 s.
- GCP: https://cloud.google.com/compute/docs/instances/create-use-spot and /docs/metadata/getting-live-migration-notice. 30 s; 60 s before
  maintenance.
- Azure: https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events. 30 s; to be asked every second.
"""

import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from macadam.errors import InvalidInput
from macadam.lazy import lazy
from macadam.values import parse_instant, utc_now

if TYPE_CHECKING:
    import httpx
else:
    httpx = lazy("httpx")

_log = logging.getLogger(__name__)
CLOUDS = ("aws", "gcp", "azure")
ADDRESS = "http://169.254.169.254"
EVERY = 2.0
"""s between two questions: of 30 s of notice little is lost, and the services bear one question a second."""
_SECONDS = 2.0  # until an answer has to be there: it comes from the machine's own host
_MOST = 64 << 10  # bytes of an answer; a document of Azure's events has a few hundred for each
_TOKEN_SECONDS = 21600  # as AWS's own examples ask for; at most six hours
_SHORTEST = timedelta(seconds=30)  # what GCP and Azure give at least
_MAINTENANCE = timedelta(seconds=60)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}\Z")
_OK, _UNAUTHORISED, _ABSENT = 200, 401, 404
_AHEAD = timedelta(minutes=15)
"""Azure announces some moves days before: until then the machine may be used. It announces a reboot so long before, others for less."""
# Azure: what ends the machine, or moves it without its memory. `Freeze` is a pause of some seconds.
_ENDS = ("Preempt", "Terminate", "Reboot", "Redeploy")


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What is known. leaving: when the machine goes, None if nobody said so. risky: likely to go soon, but not announced.
    words: whose word it is.
    """

    leaving: datetime | None = None
    risky: bool = False
    words: str = ""


class _Action(msgspec.Struct, frozen=True):
    action: str
    time: str = ""


class _Event(msgspec.Struct, frozen=True, rename="pascal"):
    event_type: str
    event_id: str = ""
    not_before: str = ""
    resources: tuple[str, ...] = ()


class _Events(msgspec.Struct, frozen=True, rename="pascal"):
    events: Annotated[tuple[_Event, ...], msgspec.Meta(max_length=1000)] = ()


class _Unanswered(Exception):
    """The service said nothing that can be understood: what was known before stays."""


class Watcher:
    """Asks one cloud again and again. address: of its metadata service, another one in tests. The first `notice` starts it."""

    def __init__(
        self,
        provider: Literal["aws", "gcp", "azure"],
        *,
        address: str = ADDRESS,
        every: float = EVERY,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._provider, self._every, self._now = provider, every, now
        # Proxies would be asked about their own machine, and a redirect leads where nobody meant to ask.
        self._http = httpx.Client(base_url=address, timeout=_SECONDS, trust_env=False, follow_redirects=False)
        self._ask = {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[provider]
        self._known = Notice()
        self._token, self._name, self._flavour = "", "", ""
        self._silent = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def notice(self) -> Notice:
        """What was last said. Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="interruptions", daemon=True)
            self._thread.start()
        return self._known

    def look(self) -> Notice:
        """Asks now, and keeps the answer; without one, what was known before."""
        try:
            found = self._ask()
        except (httpx.HTTPError, _Unanswered, UnicodeDecodeError) as error:
            if not self._silent:
                facts = {"provider": self._provider, "detail": f"{type(error).__name__}: {error}"[:200]}
                _log.warning("the cloud does not say whether it takes this machine away", extra={"facts": facts})
            self._silent = True
            return self._known
        self._silent = False
        if found != self._known and (found.leaving or found.risky):
            facts = {"provider": self._provider, "leaving": str(found.leaving or ""), "words": found.words}
            _log.warning("the cloud takes this machine away, or is likely to", extra={"facts": facts})
        self._known = found
        return found

    def close(self) -> None:
        """Closing twice does nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * _SECONDS)
        self._http.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every)

    # --- each cloud

    def _aws(self) -> Notice:
        """404 where nothing is announced. A token that is no longer taken is asked for anew, once."""
        status, text = self._amazon("/latest/meta-data/spot/instance-action")
        if status == _OK:
            said = _decoded(text, _Action)
            # Hibernation begins with the notice, whatever time it names.
            at = self._first(self._now()) if said.action == "hibernate" else _at(said.time)
            return Notice(leaving=at or self._first(self._now() + _SHORTEST), words=f"AWS: {said.action}")
        status, _ = self._amazon("/latest/meta-data/events/recommendations/rebalance")
        return Notice(risky=True, words="AWS: rebalance recommendation") if status == _OK else Notice()

    def _amazon(self, path: str) -> tuple[int, str]:
        for _ in range(2):
            if not self._token:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                status, token = self._call("PUT", "/latest/api/token", ttl)
                if status != _OK or not token.isascii() or not token.isprintable():
                    raise _Unanswered(f"{status} instead of a token")
                self._token = token.strip()
            status, text = self._call("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if status in (_OK, _ABSENT):
                return status, text
            self._token = ""
            if status != _UNAUTHORISED:
                break
        raise _Unanswered(f"{status} of {path}")

    def _gcp(self) -> Notice:
        if self._google("preempted") == "TRUE":
            return Notice(leaving=self._first(self._now() + _SHORTEST), words="GCP: preempted")
        # Live migration leaves everything running.
        if self._google("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice(leaving=self._first(self._now() + _MAINTENANCE), words="GCP: host maintenance")
        return Notice()

    def _google(self, key: str) -> str:
        status, text = self._call("GET", f"/computeMetadata/v1/instance/{key}", {"Metadata-Flavor": "Google"})
        if status != _OK or self._flavour != "Google":
            raise _Unanswered(f"{status} of {key}")
        return text.strip()

    def _azure(self) -> Notice:
        """Events of a whole scale set are told to each of its machines: only those that name this one count."""
        metadata = {"Metadata": "true"}
        if not self._name:
            path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
            status, name = self._call("GET", path, metadata)
            if status != _OK or not _NAME.match(name.strip()):
                raise _Unanswered(f"{status} instead of this machine's name")
            self._name = name.strip()
        status, text = self._call("GET", "/metadata/scheduledevents?api-version=2020-07-01", metadata)
        if status != _OK:
            raise _Unanswered(f"{status} instead of events")
        mine = [
            event
            for event in _decoded(text, _Events).events
            if event.event_type in _ENDS and self._name in event.resources
        ]
        # NotBefore is blank once it has begun.
        times = [(_http_date(event.not_before) or self._first(self._now()), event.event_type) for event in mine]
        at, kind = min(times, default=(None, ""))
        return Notice(leaving=at, words=f"Azure: {kind}") if at and at <= self._now() + _AHEAD else Notice()

    def _first(self, at: datetime) -> datetime:
        """The instant that was worked out when it was first announced: it does not move on with each question."""
        return self._known.leaving or at

    def _call(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        with self._http.stream(method, path, headers=headers) as answer:
            self._flavour = answer.headers.get("Metadata-Flavor", "")
            body = b""
            for part in answer.iter_bytes():
                body += part
                if len(body) > _MOST:
                    raise _Unanswered(f"more than {_MOST} bytes")
            return answer.status_code, body.decode()


def _decoded(text: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise _Unanswered(str(error)) from error


def _at(text: str) -> datetime | None:
    """None for what is no instant: then the notice counts all the same."""
    try:
        return parse_instant(text)
    except InvalidInput:
        return None


def _http_date(text: str) -> datetime | None:
    """'Mon, 19 Sep 2016 18:29:47 GMT', as Azure writes it, and in some versions ISO 8601."""
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return _at(text)
    return _at((found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat())
