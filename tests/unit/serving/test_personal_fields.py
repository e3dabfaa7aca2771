"""Which fields are personal follows from contracts and definitions; where nothing says whose, nothing is deployed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.features.shop import SERVICE

from macadam.data import contracts, personal
from macadam.errors import ContractInvalid, InvalidInput
from macadam.personal.types import PersonalFields
from macadam.serving import personal_fields
from macadam.serving.personal_fields import About, Declared

SPEC = msgspec.to_builtins(SERVICE)
CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: orders
version: 1.0.0
status: active
schema:
  - name: orders
    properties:
      - {name: id, logicalType: integer}
      - name: Shop
        logicalType: string
        customProperties: [{property: subject, value: true}]
      - {name: note, logicalType: string, classification: Sensitive_Personal}
      - {name: price, logicalType: number, classification: confidential}
"""


def of(declared: Declared | None = None, **tables: About) -> PersonalFields | None:
    return personal_fields.of_service(SPEC, lambda name: tables.get(name, About()), declared or Declared())


def about(*columns: str, subjects: tuple[str, ...] = ()) -> About:
    return About(frozenset((*columns, *subjects)), frozenset(subjects))


def test_an_endpoint_without_personal_columns_has_no_personal_fields() -> None:
    assert of() is None


def test_what_derives_from_a_personal_column_is_personal_through_views_and_requests() -> None:
    found = of(orders=about("price", subjects=("item",)))
    assert found is not None
    assert (found.subject, found.inputs, found.output) == ("item", ("item", "price"), False)
    assert set(found.features) == {
        "dish_late_mean_1d",  # looked up by a key that is the person
        "recent_minutes",
        "item_weight",
        "price",
        "price_per_weight",  # through price, and through the item's weight
    }


def test_a_value_of_a_view_and_the_label_are_personal_if_a_personal_column_has_a_part_in_them() -> None:
    found = of(orders=about("minutes", "note", subjects=("shop",)))
    assert found is not None
    assert found.output  # late is minutes > 30
    assert {"last_note", "last_minutes", "shop_minutes_mean_2h"} <= set(found.features)
    only_note = of(orders=about("note"), items=about(subjects=("item",)))
    assert only_note is not None
    assert "last_note" in only_note.features
    assert "last_minutes" not in only_note.features
    assert not only_note.output


def test_personal_fields_of_nobody_are_refused_with_what_to_do() -> None:
    with pytest.raises(ContractInvalid, match="nothing says whose") as refused:
        of(orders=about("price"))
    assert "--subject" in refused.value.next_step
    assert "customProperties" in refused.value.next_step
    with pytest.raises(ContractInvalid, match="item and shop each name a person"):
        of(orders=about("price", subjects=("shop", "item")))


def test_a_deployment_adds_to_what_contracts_say_and_takes_nothing_away() -> None:
    declared = Declared(subject="shop", names=("hour", "output"))
    found = of(declared, orders=about("price"))
    assert found is not None
    assert found.subject == "shop"
    assert found.inputs == ("shop", "price")
    assert {"hour", "price", "price_per_weight", "shop_minutes_count_6h"} <= set(found.features)
    assert found.output


@pytest.mark.parametrize("declared", [Declared(names=("colour",)), Declared(subject="hour", names=("price",))])
def test_a_field_that_is_none_of_the_endpoint_is_refused(declared: Declared) -> None:
    with pytest.raises(InvalidInput, match="no field"):
        of(declared)


def test_requests_that_bring_the_features_have_the_fields_that_are_declared() -> None:
    found = personal_fields.of_signature(("a", "b", "c"), Declared(subject="b", names=("c",)))
    assert found == PersonalFields(subject="b", inputs=("b", "c"), features=("b", "c"))
    assert personal_fields.of_signature(("a", "b"), Declared()) is None
    with pytest.raises(ContractInvalid, match="nothing says whose"):
        personal_fields.of_signature(("a", "b"), Declared(names=("a",)))


def test_a_contract_says_which_columns_are_personal_and_who_a_row_is_about() -> None:
    table = contracts.table(contracts.parse(CONTRACT), "orders")
    assert personal.columns(table) == {"shop", "note"}
    assert personal.subjects(table) == {"shop"}
    with pytest.raises(ContractInvalid, match="customProperties subject"):
        contracts.parse(CONTRACT.replace("value: true", "value: customer"))


@given(
    st.sampled_from(sorted(personal.PERSONAL)),
    st.sampled_from([" ", "-", "_", "  "]),
    st.sampled_from([str.upper, str.title, str]),
)
def test_classifications_are_read_whatever_their_spelling(word: str, joint: str, case: type[str]) -> None:
    assert personal.is_personal(case(word.replace(" ", joint)))


@pytest.mark.parametrize("word", ["", "public", "internal", "confidential", "restricted", "impersonal"])
def test_other_classifications_are_not_personal(word: str) -> None:
    assert not personal.is_personal(word)
