"""`macadam version`."""

import argparse
import platform

from macadam import __version__
from macadam.faces.session import Session, Verb


def _configure(_parser: argparse.ArgumentParser) -> None:
    """It takes nothing of its own."""


def _run(_options: argparse.Namespace, session: Session) -> int:
    session.say(f"macadam {__version__} (Python {platform.python_version()})")
    if session.json:
        session.show({"name": "macadam", "version": __version__, "python": platform.python_version()})
    return 0


VERB = Verb(configure=_configure, run=_run)
