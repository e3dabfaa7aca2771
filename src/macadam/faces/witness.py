"""`macadam witness`: runs the witness of this package, which is a program of its own, for logs of others or in a test."""

import argparse

from macadam.errors import SettingInvalid
from macadam.faces.session import Session, Verb
from macadam_witness import __main__ as program
from macadam_witness.memory import Unusable
from macadam_witness.notes import Malformed


def _run(options: argparse.Namespace, _session: Session) -> int:
    given = {name: getattr(options, name) for name in ("name", "host", "port") if hasattr(options, name)}
    try:
        program.run(options.directory, options.logs, **given)
    except (Unusable, Malformed, OSError) as error:
        raise SettingInvalid(f"The witness cannot work: {error}.", next_step="macadam witness --help") from error
    return 0


VERB = Verb(configure=program.configure, run=_run)
