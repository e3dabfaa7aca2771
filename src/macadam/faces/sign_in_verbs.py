"""`macadam login`, and `macadam tokens revoke --offline`: credentials where no operation's caller is there yet."""

import argparse
import getpass
import socket

import msgspec

from macadam.access import revoking
from macadam.app.platform import open_stores
from macadam.errors import InvalidInput
from macadam.faces.session import Session, Verb
from macadam.settings import Settings
from macadam.values import utc_now


class Offline(msgspec.Struct, frozen=True, kw_only=True):
    """What was revoked without the database. list: the revocation list's number."""

    token: str
    by: str
    list: int


def _configure_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("token_id", metavar="TOKEN_ID", help="the credential's id, as `macadam tokens list` says it")


def _revoke_offline(options: argparse.Namespace, session: Session) -> int:
    """Whoever may write the home's files and read its key may do this: the file system is what authorises it."""
    if session.url:
        raise InvalidInput(
            f"--offline works on this machine's home, but {session.url} was named.",
            next_step="Unset MACADAM_URL (--url), or run it on that machine.",
        )
    settings = Settings.load(home=session.home)
    if not (settings.home / "objects").is_dir():
        raise InvalidInput(f"There is no home at {settings.home}.", next_step="Name it with --home or MACADAM_HOME.")
    objects, store = open_stores(settings)
    who = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{getpass.getuser()}-at-{socket.gethostname()}")
    made = revoking.revoke_offline(
        objects, store, settings.home, options.token_id, by=f"offline:{who[:70]}", now=utc_now()
    )
    session.say(f"Revoked on every gateway, by list {made.number}. The next start of the control plane records it.")
    if session.json:
        session.show(Offline(token=options.token_id, by=who, list=made.number))
    return 0


REVOKE_OFFLINE = Verb(configure=_configure_offline, run=_revoke_offline)
