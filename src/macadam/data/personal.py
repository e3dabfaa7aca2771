"""What a contract says about people: which columns are personal, and which one names the person.

ODCS leaves the words of `classification` open; those here are the ones in use. Who a row is about is the custom property
`subject`: true at the column that names the person.
"""

from macadam.access.classification import highest
from macadam.data.types import TableContract

PERSONAL = frozenset(
    {
        "personal",
        "personal data",
        "personal information",
        "pii",
        "phi",
        "spi",
        "sensitive",
        "sensitive personal",
        "sensitive personal data",
        "special category",
    }
)
"""Classifications that make a column personal, whatever their case and however their words are joined."""


def is_personal(classification: str) -> bool:
    words = classification.lower().replace("-", " ").replace("_", " ").split()
    return " ".join(words) in PERSONAL


def columns(table: TableContract) -> frozenset[str]:
    """Names of the personal columns, in lower case; the one that names the person is always among them."""
    return frozenset(c.name.lower() for c in table.columns if c.subject or is_personal(c.classification))


def subjects(table: TableContract) -> frozenset[str]:
    """Names of the columns that name the person a row is about, in lower case."""
    return frozenset(c.name.lower() for c in table.columns if c.subject)


def classification(table: TableContract) -> str:
    """What policies are told of a table: 'personal' if any column is, else the strictest word of its columns, '' if
    there is none.
    """
    return "personal" if columns(table) else highest(c.classification for c in table.columns)
