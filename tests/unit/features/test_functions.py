from datetime import UTC, datetime

import pytest

from macadam.features import functions
from macadam.features.define import RequestFeature

# 2013-03-10 in New York: summer time began at 7:00 UTC.
AT = datetime(2013, 3, 10, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("number", (3,), 3.0),
        ("category", ("AA",), "AA"),
        ("hour_of_day", (AT,), 3.0),
        ("minute_of_day", (AT,), 210.0),
        ("day_of_week", (AT,), 6.0),
        ("day_of_year", (AT,), 69.0),
        ("month", (AT,), 3.0),
        ("years_since", (1999.0, AT), 14.0),
        ("clock_minutes", (1745.0,), 1065.0),
        ("clock_minutes", (2400.0,), 1440.0),
        ("difference", (5.0, 2.0), 3.0),
        ("ratio", (6.0, 4.0), 1.5),
        ("ratio", (6.0, 0.0), None),
        ("equal", ("a", "a"), 1.0),
        ("equal", ("a", "b"), 0.0),
        ("cross", ("a", "b"), "a|b"),
    ],
)
def test_each_function_does_what_its_line_says(name, arguments, value):
    found = functions.compiled("f", name, "America/New_York")(*arguments)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", list(functions.FUNCTIONS))
def test_a_missing_argument_gives_a_missing_value(name):
    arguments = [None] * len(functions.FUNCTIONS[name].arguments)
    assert functions.compiled("f", name, "UTC")(*arguments) is None


def test_every_function_is_described():
    for name in functions.FUNCTIONS:
        assert f"\n    {name}(" in functions.__doc__


def test_a_feature_without_inputs_takes_the_one_of_its_own_name():
    assert RequestFeature(name="distance").arguments == ("distance",)
