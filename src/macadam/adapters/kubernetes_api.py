"""A Kubernetes API server over HTTPS: who we are to it, and the few verbs that the executor needs.

The server's certificate is always verified. Credentials come from a kubeconfig (token or client certificate) or, inside a cluster, from the
pod's service account, whose token is read anew each time as the kubelet rotates it.
"""

import base64
import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from macadam.errors import Conflict, InvalidInput, NotFound, SettingInvalid, Unavailable

Object = dict[str, Any]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 30.0  # for one request
_TOKEN = re.compile(r"[!-~]*\Z")
_PAGE = 500  # objects in one answer of a list, as kubectl asks


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How one cluster is reached. server: https://…; authority: PEM of who signs its certificate, '' = the system's.
    token, or token_file (read at each request), or certificate and key (PEM).
    """

    server: str
    authority: str = ""
    token: str = ""
    token_file: str = ""
    certificate: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return f"Access(server={self.server!r})"  # never credentials

    def __post_init__(self) -> None:
        if not self.server.startswith("https://"):
            raise SettingInvalid(
                f"The API server {self.server!r} is not reached over HTTPS.", next_step="Give its https:// address."
            )


def open_api(config: str, context: str = "") -> "KubernetesApi":
    """config: a kubeconfig file; '' = the service account of this pod. Raises SettingInvalid."""
    return KubernetesApi(from_kubeconfig(Path(config), context) if config else in_cluster())


def in_cluster(environment: Mapping[str, str] = os.environ, account: Path = _ACCOUNT) -> Access:
    """The access of a pod. Raises SettingInvalid outside a cluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    authority = account / "ca.crt"
    if not (host and authority.exists()):
        raise SettingInvalid(
            "This process runs in no cluster and no kubeconfig is named.",
            next_step="Set MACADAM_KUBERNETES_CONFIG to a kubeconfig file.",
        )
    name = f"[{host}]" if ":" in host else host
    return Access(server=f"https://{name}:{port}", authority=authority.read_text(), token_file=str(account / "token"))


def from_kubeconfig(path: Path, context: str = "") -> Access:
    """The access that a kubeconfig's context gives ('' = its current one). Raises SettingInvalid."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        chosen = _named(config, "contexts", context or config["current-context"])["context"]
        cluster = _named(config, "clusters", chosen["cluster"])["cluster"]
        user = _named(config, "users", chosen["user"])["user"]
        if cluster.get("insecure-skip-tls-verify"):
            raise SettingInvalid(
                f"{path} switches off the check of the server's certificate.",
                next_step="Give certificate-authority-data instead of insecure-skip-tls-verify.",
            )
        if narrower := sorted({"as", "as-uid", "as-groups", "as-user-extra", "username"} & set(user)):
            raise SettingInvalid(
                f"{path} says {narrower[0]!r} of its user, which Macadam does not do.",
                next_step="Create a service account for Macadam and use its token: kubectl create token macadam.",
            )
        if "exec" in user or "auth-provider" in user:
            raise SettingInvalid(
                f"{path} asks a program for credentials, which Macadam does not run.",
                next_step="Create a service account for Macadam and use its token: kubectl create token macadam.",
            )
        return Access(
            server=cluster["server"],
            authority=_text(cluster, "certificate-authority", path),
            token=user.get("token", "").strip(),
            token_file=str(path.absolute().parent / user["tokenFile"]) if user.get("tokenFile") else "",
            certificate=_text(user, "client-certificate", path),
            key=_text(user, "client-key", path),
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise SettingInvalid(
            f"{path} is no usable kubeconfig: {type(error).__name__}.",
            next_step=f"Check it with `kubectl --kubeconfig {path} get nodes`.",
        ) from error


def _named(config: Any, kind: str, name: str) -> Any:
    return {entry["name"]: entry for entry in config[kind]}[name]


def _text(entry: Mapping[str, str], name: str, path: Path) -> str:
    """A PEM that stands in the file itself, or beside it."""
    if inline := entry.get(f"{name}-data"):
        return base64.b64decode(inline, validate=True).decode()
    return (path.parent / entry[name]).read_text() if name in entry else ""


class KubernetesApi:
    """Verbs on objects of one cluster. Raises Unavailable where the server does not answer, or answers that it cannot now."""

    def __init__(self, access: Access, *, seconds: float = _SECONDS) -> None:
        self._access = access
        self._http = httpx.Client(base_url=access.server, verify=_context(access), timeout=seconds, trust_env=False)

    def create(self, path: str, found: Object) -> Object:
        """Raises Conflict if the name is taken, InvalidInput if the server refuses the object for what it says."""
        return self._call("POST", path, found)

    def get(self, path: str) -> Object:
        """Raises NotFound."""
        return self._call("GET", path)

    def items(self, path: str, *, labels: str = "") -> Iterator[Object]:
        """All objects of a list, page by page."""
        query: dict[str, str | int] = {"limit": _PAGE} | ({"labelSelector": labels} if labels else {})
        while True:
            page = self._call("GET", path, query=query)
            yield from page.get("items", ())
            if not (more := page.get("metadata", {}).get("continue")):
                return
            query["continue"] = more

    def patch(self, path: str, change: Object) -> Object:
        """A JSON merge patch (RFC 7386): null removes. Raises NotFound, Conflict."""
        return self._call("PATCH", path, change, kind="application/merge-patch+json")

    def delete(self, path: str, *, grace: int | None = None, propagation: str = "Background") -> None:
        """What is not there is no error. grace: seconds, for pods."""
        options: Object = {"propagationPolicy": propagation}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._call("DELETE", path, options)
        except NotFound:
            return

    def read(self, path: str, *, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of a pod's log from `offset` on: the server knows no offsets, so it sends what is before too.

        Raises NotFound.
        """
        found = bytearray()
        skipped = 0
        try:
            with self._http.stream(
                "GET", path, params={"limitBytes": offset + limit}, headers=self._headers()
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _error(answer)
                for chunk in answer.iter_bytes():
                    skip = min(len(chunk), offset - skipped)
                    skipped += skip
                    found += chunk[skip:]
                    if len(found) >= limit:  # whatever else the server would send
                        break
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        return bytes(found[:limit])

    def close(self) -> None:
        self._http.close()

    def _headers(self) -> dict[str, str]:
        token = self._access.token
        if self._access.token_file:
            try:
                token = Path(self._access.token_file).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:  # it is being replaced, perhaps
                raise Unavailable(
                    f"The token file {self._access.token_file} cannot be read: {type(error).__name__}.",
                    next_step="Check that it is there and holds a token.",
                ) from error
        if not _TOKEN.match(token):  # an HTTP library's complaint would quote it
            raise Unavailable("The API server's token is no token.", next_step="Write it as one word, without a break.")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str | int] | None = None,
        kind: str = "application/json",
    ) -> Object:
        content = None if body is None else msgspec.json.encode(body)
        headers = self._headers() | ({} if body is None else {"Content-Type": kind})
        try:
            answer = self._http.request(method, path, params=query, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if not answer.is_success:  # a redirection too: credentials go to nobody else
            raise _error(answer)
        try:
            return msgspec.json.decode(answer.content, type=Object)
        except msgspec.DecodeError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"The API server {self._access.server} does not answer: {type(error).__name__}: {error}",
            next_step="Check that the cluster is up and its certificate is the one that the kubeconfig names.",
        )


def _context(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=access.authority or None)
    if access.certificate:
        # ssl reads a client's certificate from files only.
        with tempfile.TemporaryDirectory() as place:
            pair = Path(place) / "pair.pem"
            pair.touch(mode=0o600)
            pair.write_text(f"{access.certificate}\n{access.key}\n")
            context.load_cert_chain(pair)
    return context


def _error(answer: httpx.Response) -> Exception:
    """A Status object as one of our errors."""
    try:
        said = str(msgspec.json.decode(answer.content)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = answer.text[:500]
    what = f"The API server answered {answer.status_code}: {said}"
    match answer.status_code:
        case 404:
            return NotFound(what, next_step="Look at what there is with kubectl.")
        case 409:
            return Conflict(what, next_step="Read it again.")
        case 400 | 422:
            return InvalidInput(what, next_step="Change what the message names.")
        case 401 | 403:
            # Also what a namespace's quota answers; either way it may work later, and nothing was changed.
            return Unavailable(what, next_step="Give Macadam's service account the role that the how-to names.")
        case _:
            return Unavailable(what, next_step="Try again.")
