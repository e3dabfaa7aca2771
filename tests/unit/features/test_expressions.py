import pytest

from macadam.errors import InvalidInput
from macadam.features import expressions
from macadam.features.define import Table


@pytest.mark.parametrize(
    ("expression", "columns"),
    [
        ("arr_delay > 15", {"arr_delay"}),
        ("timezone(zone, time_hour + to_minutes(minute))", {"zone", "time_hour", "minute"}),
        ("CASE WHEN a IN ('x') THEN B ELSE nullif(c, 0) END", {"a", "b", "c"}),
        ('"odd name" -- why', {"odd name"}),
        ("INTERVAL 1 DAY", set()),
    ],
)
def test_the_columns_of_an_expression_are_found(expression, columns):
    assert expressions.columns(expression) == columns


@pytest.mark.parametrize(
    "expression",
    [
        "", "   ", "a +", "now()", "current_date", "CURRENT_TIMESTAMP", "random()", "uuid()", "nextval('s')",
        "max(a)", "sum(a) OVER ()", "row_number() OVER ()", "(SELECT max(a) FROM rows)", "a IN (SELECT 1)",
        "*", "?", "$1", "1; DROP TABLE x", "1) FROM x WHERE (true", "getvariable('x')", "read_text('/etc/passwd')",
    ],
)  # fmt: skip
def test_what_sees_more_than_one_row_and_its_columns_is_refused(expression):
    with pytest.raises(InvalidInput, match="cannot be a feature"):
        expressions.columns(expression)


def table(**derive):
    return Table(name="t", row_id=("id",), derive=derive)


def test_an_expression_that_would_take_a_gigabyte_to_parse_is_refused_unparsed():
    with pytest.raises(InvalidInput) as error:
        expressions.columns("(" * 6000 + "x" + ")" * 6000)
    assert "longer than 10000" in str(error.value)[-300:]
    assert len(str(error.value)) < 1000


def test_derived_columns_are_followed_to_the_stored_ones():
    chained = table(c="b + x", a="stored * 2", b="a + 1")
    assert list(expressions.derived_in_order(chained)) == ["a", "b", "c"]
    assert expressions.base_columns(chained, "C > id") == {"stored", "x", "id"}


@pytest.mark.parametrize("derive", [{"a": "a + 1"}, {"a": "b", "b": "A"}])
def test_derived_columns_that_read_each_other_in_a_circle_are_refused(derive):
    with pytest.raises(InvalidInput, match="in a circle"):
        expressions.base_columns(table(**derive), "a")
