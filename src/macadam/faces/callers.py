"""Opens what commands go through: a server if one is named, else this machine's home in process."""

import os
from pathlib import Path

from macadam.access.circumstances import declared
from macadam.app.platform import Platform
from macadam.faces.client import Client


def open_caller(url: str, token: str, home: Path | None) -> Platform | Client:
    """url: '' opens the home. token: '' is the home's own caller. Raises SettingInvalid.

    MACADAM_PURPOSE and MACADAM_LOCATION say what the calls are for and from where, for policies that ask.
    """
    says = declared(os.environ.get("MACADAM_PURPOSE", ""), os.environ.get("MACADAM_LOCATION", ""))
    return Client(url, token, declared=says) if url else Platform.open(home, token=token, declared=says)
