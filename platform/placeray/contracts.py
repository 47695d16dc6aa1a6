"""The data contracts of `schemas/`: Arrow schemas of tables, JSON Schemas of documents, and their checks.

A room reads another room's data only through a contract. The schema files are language-neutral and frozen by
hash once released (`schemas/frozen.json`).
"""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa

from placeray.errors import ContractError

_SCALARS: dict[str, pa.DataType] = {
    "string": pa.string(),
    "binary": pa.binary(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
_VECTORS: dict[str, pa.DataType] = {"vector<float16>": pa.float16(), "vector<float32>": pa.float32()}


def schema_folder() -> Path:
    """Where the schema files are: inside the package (wheel) or two folders up (checkout, Ray working folder)."""
    candidates = [
        Path(str(importlib.resources.files("placeray"))) / "schemas",
        Path(__file__).resolve().parents[2] / "schemas",
    ]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ContractError(f"the schemas folder is missing; looked in {' and '.join(map(str, candidates))}")


@functools.cache
def load_contract(name: str) -> Mapping[str, Any]:
    """The schema file of `name/vN`, for example `images/v1`. Raises ContractError for an unknown one."""
    stem, _, version = name.partition("/")
    file = schema_folder() / f"{stem}.{version}.json"
    if not file.is_file():
        known = sorted(path.stem.replace(".", "/") for path in file.parent.glob("*.v*.json"))
        raise ContractError(f"no contract is called {name!r}; known are {', '.join(known)}")
    contract: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return contract


def table_schema(name: str, vector_sizes: Mapping[str, int] | None = None) -> pa.Schema:
    """The Arrow schema of a table contract.

    Args:
        name: such as `places/v1`.
        vector_sizes: length of each `vector<...>` column, which the contract leaves open.
    """
    columns = load_contract(name)["columns"]
    return pa.schema([_field(column, vector_sizes or {}) for column in columns])


def empty_table(name: str, vector_sizes: Mapping[str, int] | None = None) -> pa.Table:
    """A table of no rows with the columns of a contract."""
    return table_schema(name, vector_sizes).empty_table()


def validate_table(table: pa.Table | pa.Schema, name: str) -> None:
    """Check column names, order, types and (for a table) nulls against a contract.

    Raises:
        ContractError: names the first column that does not fit.
    """
    schema = table.schema if isinstance(table, pa.Table) else table
    columns = load_contract(name)["columns"]
    expected = [column["name"] for column in columns]
    if schema.names != expected:
        missing = [column for column in expected if column not in schema.names]
        extra = [column for column in schema.names if column not in expected]
        problem = (
            f"missing {missing}, unexpected {extra}" if missing or extra else f"in the order {schema.names}"
        )
        raise ContractError(f"{name}: the columns do not fit the contract: {problem}")
    for column in columns:
        _check_type(name, column, schema.field(column["name"]).type)
        if isinstance(table, pa.Table) and not column["nullable"] and table[column["name"]].null_count:
            raise ContractError(
                f"{name}: column {column['name']} has {table[column['name']].null_count} nulls, it may have none"
            )


def validate_document(document: Mapping[str, Any], name: str) -> None:
    """Check a JSON document against a contract. Raises ContractError naming the path that fails."""
    contract = load_contract(name)
    errors = sorted(jsonschema.Draft202012Validator(contract["schema"]).iter_errors(document), key=str)
    if errors:
        path = ".".join(str(part) for part in errors[0].absolute_path) or "the document"
        raise ContractError(f"{name}: {path}: {errors[0].message}")


def table_manifest(
    contract: str,
    files: Sequence[Mapping[str, Any]],
    *,
    made_by: Mapping[str, Any],
    properties: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a folder of parquet files.

    Args:
        contract: what the files hold, such as `images/v1`.
        files: one mapping per file with path (relative to the folder), rows, bytes, sha256.
        made_by: the configuration and counts of the step that wrote them.
        properties: what a reader must know about the whole set, such as the model of its descriptors.
    """
    ordered = sorted((dict(file) for file in files), key=lambda file: str(file["path"]))
    digest = hashlib.sha256(contract.encode())
    for file in ordered:
        digest.update(f"\n{file['path']}\t{file['sha256']}".encode())
    manifest = {
        "contract": contract,
        "files": ordered,
        "rows": sum(int(file["rows"]) for file in ordered),
        "fingerprint": digest.hexdigest(),
        "made_by": dict(made_by),
        "properties": dict(properties or {}),
    }
    validate_document(manifest, "table_manifest/v1")
    return manifest


def _field(column: Mapping[str, Any], vector_sizes: Mapping[str, int]) -> pa.Field:
    kind = column["type"]
    if kind == "list<struct>":
        struct = pa.struct([_field(inner, vector_sizes) for inner in column["fields"]])
        return pa.field(
            column["name"], pa.list_(pa.field("item", struct, nullable=False)), column["nullable"]
        )
    if kind in _VECTORS:
        if column["name"] not in vector_sizes:
            raise ContractError(f"column {column['name']} is a vector: state its length in vector_sizes")
        return pa.field(
            column["name"], pa.list_(_VECTORS[kind], vector_sizes[column["name"]]), column["nullable"]
        )
    return pa.field(column["name"], _SCALARS[kind], column["nullable"])


def _check_type(name: str, column: Mapping[str, Any], actual: pa.DataType) -> None:
    if column["type"] in _VECTORS:
        fits = pa.types.is_fixed_size_list(actual) and actual.value_type == _VECTORS[column["type"]]
    else:
        fits = _without_nullability(actual) == _without_nullability(_field(column, {}).type)
    if not fits:
        raise ContractError(
            f"{name}: column {column['name']} is {actual}, the contract says {column['type']}"
        )


def _without_nullability(kind: pa.DataType) -> pa.DataType:
    """Parquet readers differ in how they mark inner fields nullable; the names and types must agree."""
    if pa.types.is_list(kind):
        return pa.list_(_without_nullability(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind[i].name, _without_nullability(kind[i].type)) for i in range(kind.num_fields)])
    return kind
