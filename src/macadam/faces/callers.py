"""Opens what commands go through: a server if one is named, else this machine's home in process."""

from pathlib import Path

from macadam.app.platform import Platform
from macadam.faces.client import Client


def open_caller(url: str, token: str, home: Path | None) -> Platform | Client:
    """url: '' opens the home. token: '' is the home's own caller. Raises SettingInvalid."""
    return Client(url, token) if url else Platform.open(home, token=token)
