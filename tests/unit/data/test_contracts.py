"""Parsing ODCS v3: what is understood, and what is refused with which words."""

from pathlib import Path

import pytest

from macadam.data import contracts
from macadam.errors import ContractInvalid, TooLarge

ROOT = Path(__file__).parents[3]
STANDARD = ROOT.parent / "shared" / "data" / "contracts"
FLIGHTS = ROOT / "examples" / "flights" / "contracts"

HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: orders\nversion: 1.0.0\nstatus: active\n"
TABLE = (
    HEAD
    + """
schema:
  - name: orders
    properties:
      - {name: id, logicalType: integer, primaryKey: true, primaryKeyPosition: 1}
      - name: day
        logicalType: date
        logicalTypeOptions: {minimum: 2020-01-01}
        enum: [{value: 2020-01-02}]
"""
)


@pytest.mark.skipif(not STANDARD.is_dir(), reason="the standard's own examples are not beside this checkout")
def test_the_standards_own_examples_parse():
    parsed = [contracts.parse_file(path) for path in sorted(STANDARD.glob("*.odcs.yaml"))]
    assert len(parsed) == 9
    rules = {rule.name: rule for contract in parsed for table in contract.tables for rule in table.rules}
    assert rules["tbl.rowCount"].comparison.holds(1_000_001)
    assert rules["rcvr_cntry_code.nullValues"].level == "row"
    assert rules["air_quality_status.invalidValues"].level == "table"


@pytest.mark.parametrize("name", ["flights", "weather", "planes"])
def test_the_examples_contracts_parse_and_have_a_key(name):
    contract = contracts.parse_file(FLIGHTS / f"{name}.odcs.yaml")
    assert contracts.table(contract, name).key
    assert contract.null_tokens == ("", "NA")


def test_an_iso_date_stays_text():
    column = contracts.parse(TABLE).tables[0].columns[1]
    assert (column.limits.minimum, column.allowed) == ("2020-01-01", ("2020-01-02",))


def test_the_digest_is_of_the_meaning_not_of_the_spelling():
    respelled = TABLE.replace("{name: id,", "{ 'name':   \"id\",") + "# a comment\n"
    assert contracts.parse(TABLE).digest == contracts.parse(respelled).digest
    assert contracts.parse(TABLE).digest != contracts.parse(TABLE.replace("1.0.0", "1.0.1")).digest


def test_an_unknown_key_of_a_rule_is_refused_but_custom_properties_are_kept_in_the_digest():
    custom = TABLE + "customProperties: [{property: anything, value: {deep: [1]}}]\n"
    assert contracts.parse(custom).digest != contracts.parse(TABLE).digest


def test_latency_of_a_tables_column_becomes_a_freshness_rule_in_seconds():
    text = TABLE + "slaProperties: [{property: latency, value: 4, unit: d, element: orders.day}]\n"
    (rule,) = contracts.parse(text).tables[0].rules
    assert (rule.metric, rule.max_age, rule.level) == ("freshness", 4 * 86400, "table")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "line 1, column 5"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("- 1", "is a list; expected a mapping"),
        ("", "is empty"),
        ("1: 2", "keys are text"),
        (b"\xff\xfe\x00\xd8", "is not YAML"),
        ("apiVersion: v2.2.0", "expected v3"),
        ("apiVersion: v3.1.0\nkind: DataContract\nversion: 1.0.0", '"id" is a required property'),
        (TABLE.replace("integer", "intger"), "schema[0].properties[0].logicalType"),
        (TABLE.replace("name: day", "name: id"), "names id twice"),
        (TABLE + "    quality: [{metric: nullValues, mustBe: 0}]\n", "needs arguments.properties"),
        (
            TABLE + "    quality: [{metric: duplicateValues, mustBe: 0, arguments: {properties: [nr]}}]\n",
            "names nr, which is no property",
        ),
        (TABLE + "    quality: [{type: sql, query: id > 0, mustBe: 0}]\n", "mustBe: true"),
        (TABLE + "customProperties: [{property: nullTokens, value: NA}]\n", "expected a list of texts"),
    ],
)
def test_a_wrong_contract_is_refused_in_words(text, words):
    with pytest.raises(ContractInvalid) as caught:
        contracts.parse(text, origin="orders.yaml")
    assert words in str(caught.value)
    assert (
        "orders.yaml" in str(caught.value) or "schema[0]" in str(caught.value) or "orders.quality" in str(caught.value)
    )
    assert caught.value.next_step


def test_a_python_object_in_yaml_is_refused_and_not_built():
    with pytest.raises(ContractInvalid):
        contracts.parse(HEAD + "name: !!python/object/apply:os.getcwd []\n")


def test_an_alias_bomb_and_a_cycle_are_refused_quickly():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    for text in (bomb, "a: &a [*a]\n", "a: " + "x" * (contracts.MAX_BYTES + 1)):
        with pytest.raises(TooLarge):
            contracts.parse(text)


def test_a_missing_file_and_a_missing_table_are_named():
    with pytest.raises(ContractInvalid, match=r"nowhere\.yaml cannot be read"):
        contracts.parse_file(Path("nowhere.yaml"))
    with pytest.raises(ContractInvalid, match="has no table 'customers'"):
        contracts.table(contracts.parse(TABLE), "customers")


def test_rules_that_would_share_a_name_are_numbered():
    text = TABLE + "    quality: [{type: sql, query: id > 0, mustBe: true}, {type: sql, query: id < 9, mustBe: true}]\n"
    assert [rule.name for rule in contracts.parse(text).tables[0].rules] == ["orders.sql", "orders.sql#2"]
