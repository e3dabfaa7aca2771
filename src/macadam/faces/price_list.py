"""The prices that studies and decisions at the terminal reckon with: those of the home or server, own and imported ones included."""

from macadam import operations
from macadam.compute.billing.types import ListPrices
from macadam.compute.catalogue import prices
from macadam.compute.catalogue.prices import Price
from macadam.faces.session import Session
from macadam.settings import Settings
from macadam.values import utc_now

_ALL = 100_000


def known(session: Session, *, gpu: str = "", kind: str = "") -> tuple[Price, ...]:
    """The newest of each offer today, cheapest first within each currency.

    Where there is no home yet a study makes none: then they are those of this release. Raises NotFound for a GPU that is not
    known, NotAuthorised for somebody who may not read prices.
    """
    if not has_platform(session):
        return tuple(offer.price for offer in prices.offers(gpu, utc_now().date(), kind=kind))
    operations.load("cost")
    project = session.project() or "*"
    asked = {"project": project, "gpu": gpu, "kind": kind, "limit": _ALL}
    found = session.call(operations.of_request(ListPrices), asked)
    return tuple(Price(**{name: getattr(one, name) for name in Price.__struct_fields__}) for one in found)


def has_platform(session: Session) -> bool:
    """Whether there is a server or a home that can be asked; asking makes none."""
    settings = Settings.load(home=session.home)
    return bool(session.url or settings.storage.database) or settings.home.is_dir()
