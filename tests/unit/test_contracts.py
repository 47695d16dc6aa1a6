"""Contracts: schemas load, tables and documents that do not fit are refused by name, released files are frozen."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest

from placeray.contracts import (
    empty_table,
    load_contract,
    schema_folder,
    table_manifest,
    table_schema,
    validate_document,
    validate_table,
)
from placeray.errors import ContractError

TABLES = ["images/v1", "places/v1", "rejects/v1", "descriptors/v1"]


@pytest.mark.parametrize("name", TABLES)
def test_table_contracts_round_trip(name: str) -> None:
    validate_table(empty_table(name, {"descriptor": 16}), name)


@pytest.mark.parametrize("file", sorted(schema_folder().glob("*.v*.json")), ids=lambda file: file.name)
def test_every_schema_file_is_complete(file: Path) -> None:
    contract = load_contract(file.stem.replace(".", "/"))
    assert f"{contract['name']}.v{contract['version']}.json" == file.name
    assert contract["description"]
    for column in contract.get("columns", []):
        assert {"name", "type", "nullable", "description"} <= set(column)


def test_released_schemas_are_frozen() -> None:
    """A changed contract breaks every file written before: make a new version instead."""
    frozen = json.loads((schema_folder() / "frozen.json").read_text())
    actual = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in schema_folder().glob("*.v*.json")
    }
    assert actual == frozen


def test_missing_column_is_named() -> None:
    with pytest.raises(ContractError, match=r"missing \['heading_deg'\]"):
        validate_table(empty_table("images/v1").drop_columns(["heading_deg"]), "images/v1")


def test_wrong_type_is_named() -> None:
    schema = table_schema("rejects/v1")
    wrong = schema.set(3, pa.field("reason", pa.int32()))
    with pytest.raises(ContractError, match="column reason is int32, the contract says string"):
        validate_table(wrong, "rejects/v1")


def test_null_in_a_required_column_is_named() -> None:
    schema = pa.schema([field.with_nullable(True) for field in table_schema("rejects/v1")])
    row = pa.Table.from_pylist(
        [{"image_id": None, "dataset": "d", "source_uri": "u", "reason": "r", "detail": ""}], schema
    )
    with pytest.raises(ContractError, match="image_id has 1 nulls"):
        validate_table(row, "rejects/v1")


def test_vector_length_must_be_stated() -> None:
    with pytest.raises(ContractError, match="vector_sizes"):
        table_schema("descriptors/v1")


def test_unknown_contract_lists_the_known() -> None:
    with pytest.raises(ContractError, match="images/v1"):
        load_contract("photos/v1")


def test_document_error_names_the_path() -> None:
    good = table_manifest("images/v1", [{"path": "a", "rows": 1, "bytes": 2, "sha256": "0" * 64}], made_by={})
    assert good["rows"] == 1
    with pytest.raises(ContractError, match=r"files\.0\.sha256"):
        validate_document(
            good | {"files": [{"path": "a", "rows": 1, "bytes": 2, "sha256": "x"}]}, "table_manifest/v1"
        )


def test_fingerprint_depends_on_content_and_not_on_order() -> None:
    files = [{"path": p, "rows": 1, "bytes": 2, "sha256": c * 64} for p, c in [("a", "0"), ("b", "1")]]
    first = table_manifest("images/v1", files, made_by={"x": 1})
    assert first["fingerprint"] == table_manifest("images/v1", files[::-1], made_by={})["fingerprint"]
    changed = [files[0], files[1] | {"sha256": "2" * 64}]
    assert first["fingerprint"] != table_manifest("images/v1", changed, made_by={})["fingerprint"]
