import pytest
from hypothesis import given
from hypothesis import strategies as st

from macadam.access.classification import ORDER, highest

WORDS = st.lists(st.sampled_from([*ORDER, "", " Public ", "CONFIDENTIAL", "house-secret"]))


@pytest.mark.parametrize(
    ("words", "strictest"),
    [
        ((), ""),
        (("", " "), ""),
        (("public", ""), "public"),
        (("internal", "public"), "internal"),
        (("restricted", "Personal"), "personal"),
        (("house-secret", "confidential"), "restricted"),
        (("house-secret", "personal"), "personal"),
    ],
)
def test_the_strictest_word_counts_and_an_unknown_one_as_restricted(words: tuple[str, ...], strictest: str) -> None:
    assert highest(words) == strictest


@given(WORDS, WORDS)
def test_more_data_is_never_milder_and_order_does_not_matter(some: list[str], more: list[str]) -> None:
    steps = ("", *ORDER)
    both = highest([*some, *more])
    assert both == highest([*more, *some]) == highest([highest(some), highest(more)])
    assert steps.index(both) >= steps.index(highest(some))
