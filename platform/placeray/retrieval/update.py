"""Add, replace and remove photos of a map as a new version that shares all shards of the old one.

Planned from small things only: the ids of the new photos and the id columns of the map. New photos become new shards
behind the old ones; removed and replaced ones become tombstones. Nothing old is rewritten.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field

from placeray import __version__, storage
from placeray.config import Config
from placeray.errors import MapError
from placeray.retrieval.build import ROWS_FILE, build_shard, shard_folder
from placeray.retrieval.manifest import (
    TOMBSTONES,
    Manifest,
    advance,
    compose,
    fingerprint,
    read_map_manifest,
    versions,
)
from placeray.retrieval.map_lists import build_lists, calibrate, calibrated, plan_runs, with_lists
from placeray.retrieval.merge import check_num_rows
from placeray.retrieval.plan import IndexConfig, plan_map
from placeray.retrieval.publishing import publish_whole
from placeray.retrieval.tombstones import live_mask, write_tombstones

Part = dict[str, Any]
Rows = NDArray[np.int64]
MODEL_KEYS = ("model_id", "preprocessing", "code_bits", "descriptor_dim")


# By this share a map may grow or shrink before its lists are calibrated again.
_MAY_CHANGE = 0.2


class UpdateConfig(Config):
    """What changes in a map."""

    replace: bool = Field(
        default=False, description="an added photo takes the place of the one with its image_id"
    )
    remove: tuple[str, ...] = Field(default=(), description="image ids to remove")
    remove_file: str | None = Field(
        default=None,
        description="more of them: a text file, one a line, or the column image_id of .parquet or .csv",
    )
    ignore_unknown: bool = Field(default=False, description="ids to remove that the map lacks are no error")


class UpdatePlan(NamedTuple):
    """One update of one version. `finished`: the manifest it led to, when it ran before."""

    root: str
    parent: Manifest
    request: str
    parts: list[Part]
    dead: dict[int, Rows]  # shard number -> all its removed rows, where this update removes some
    removed: int
    replaced: int
    unknown: int
    finished: Manifest | None = None


def plan_update(root: str, config: UpdateConfig, descriptors: str | None = None) -> UpdatePlan:
    """Plan the update of the newest version of a map, without writing anything but CURRENT.

    Raises:
        StorageError: the descriptors are not finished.
        MapError: no map; another model; photos that the map has already; ids it lacks; nothing to do.
    """
    if not versions(root):
        raise MapError(f"{storage.resolve(root)} is no map: build one with jobs/index.py first")
    advance(root)  # a writer killed before this step had published
    parent = read_map_manifest(root)
    ids = sorted({*config.remove, *(_read_ids(config.remove_file) if config.remove_file else [])})
    if descriptors is None and not ids:
        raise MapError(
            "an update without descriptors to add or ids to remove changes nothing: give one of them"
        )
    source = None if descriptors is None else storage.read_manifest(descriptors)
    request = fingerprint([source and [source["fingerprint"], source["properties"]], ids, config.replace])
    if parent.get("update", {}).get("request") == request:
        return UpdatePlan(root, parent, request, [], {}, 0, 0, 0, finished=parent)
    parts: list[Part] = []
    added = pa.array([], pa.string())
    if descriptors is not None and source is not None:
        _check_fits(parent, source["properties"], descriptors)
        parts = plan_map(descriptors, IndexConfig(**parent["config"]))["shards"]
        files = [storage.join(descriptors, file["path"]) for file in source["files"]]
        added = pa.concat_tables([storage.read_table(uri, ["image_id"]) for uri in files])[
            "image_id"
        ].combine_chunks()
        check_num_rows(parent["counts"]["rows"] + len(added))
    dead, removed, replaced = _find_dead(root, parent, pa.array(ids, pa.string()), added, config)
    return UpdatePlan(root, parent, request, parts, dead, removed, replaced, len(ids) - removed)


def run_update(root: str, config: UpdateConfig, descriptors: str | None = None) -> Manifest:
    """Plan, build and publish an update in this process; the Ray job builds the shards elsewhere."""
    plan = plan_update(root, config, descriptors)
    if plan.finished is not None:
        return plan.finished
    shards = [build_shard(part, str(descriptors), root) for part in plan.parts]
    return finish_update(plan, shards)


def finish_update(plan: UpdatePlan, shards: Sequence[dict[str, Any]]) -> Manifest:
    """Publish a planned update whose shards are all there.

    Raises:
        MapError: another update was published meanwhile, or a shard was pruned; nothing is lost, run it again.
    """
    entries = [dict(entry) for entry in plan.parent["shards"]]
    for number, rows in plan.dead.items():
        entries[number]["tombstones"] = write_tombstones(
            plan.root, entries[number]["shard"]["shard_id"], rows
        )
    manifest = with_entries(plan.parent, entries, shards)
    manifest["build_key"] = fingerprint([plan.parent["build_key"], plan.request])
    manifest["update"] = {
        **origin_of(plan.parent),
        "request": plan.request,
        "removed": plan.removed,
        "replaced": plan.replaced,
    }
    return publish_whole(plan.root, refresh_index(plan.root, manifest), parent=plan.parent["version"])


def origin_of(parent: Manifest) -> dict[str, str]:
    """Version and key of the build that all updates and compactions of a map go back to; prune may delete the version,
    the key stays.
    """
    before = parent.get("update", {"build": parent["version"], "build_key": parent["build_key"]})
    return {key: before[key] for key in ("build", "build_key") if key in before}  # older ones have no key


def refresh_index(root: str, manifest: Manifest) -> Manifest:
    """The manifest with lists for all its shards, where it had lists: new photos join those that there are.

    The number of lists to probe stays what it was calibrated to, until the map has changed by a fifth; then it is
    measured again, on photos of the map.
    """
    index = manifest["index"]
    if index["type"] != "ivf":
        return manifest
    runs = plan_runs(manifest, index["quantizer"])
    for run in runs:
        build_lists(root, run)
    covered = with_lists(manifest, index["quantizer"], runs, index["nprobe"], index["calibration"])
    rows = manifest["counts"]["rows"] - manifest["counts"].get("removed", 0)
    if not rows or abs(rows - index["calibration"]["rows"]) <= _MAY_CHANGE * index["calibration"]["rows"]:
        return covered
    config = IndexConfig(**manifest["config"])
    found = calibrate(root, manifest, index["quantizer"], config)
    return calibrated(manifest, index["quantizer"], runs, found)


def with_entries(
    parent: Manifest, entries: Sequence[Mapping[str, Any]], shards: Sequence[dict[str, Any]]
) -> Manifest:
    """A manifest like `parent` of some shards with their tombstones and, behind them, new ones."""
    plan = {key: parent[key] for key in ("build_key", "model", "config", "source")}
    plan["cell_level"] = parent["geo"]["cell_level"]
    fresh = compose(plan, [*(entry["shard"] for entry in entries), *shards])
    for new, old in zip(fresh["shards"], entries, strict=False):
        if "tombstones" in old:
            new["tombstones"] = old["tombstones"]
    dead = sum(entry["tombstones"]["rows"] for entry in fresh["shards"] if "tombstones" in entry)
    requires = {*parent["requires"]} - {TOMBSTONES} | ({TOMBSTONES} if dead else set())
    counts = {**fresh["counts"], "removed": dead}
    builder = {"name": "placeray", "version": __version__}
    carried = {
        key: value for key, value in parent.items() if key not in ("update", "version", "parent_version")
    }
    changed = {"requires": sorted(requires), "counts": counts, "builder": builder, "geo": fresh["geo"]}
    return {**carried, **changed, "shards": fresh["shards"]}


def _check_fits(parent: Manifest, properties: Mapping[str, Any], descriptors: str) -> None:
    mine = parent["model"]
    different = [
        f"{key} {properties[key]!r} instead of {mine[key]!r}"
        for key in MODEL_KEYS
        if properties[key] != mine[key]
    ]
    if different:
        raise MapError(
            f"{storage.resolve(descriptors)} does not fit the map: {', '.join(different)}; "
            "describe the photos with the model of the map"
        )


def _find_dead(
    root: str, parent: Manifest, ids: pa.Array, added: pa.Array, config: UpdateConfig
) -> tuple[dict[int, Rows], int, int]:
    """All removed rows of each shard that loses some; how many of `ids` and of `added` the map has."""
    dead: dict[int, Rows] = {}
    removed, doubles = [pa.array([], pa.string())], [pa.array([], pa.string())]
    for number, entry in enumerate(parent["shards"]):
        here = _ids_of(root, entry)
        gone = pc.is_in(here, value_set=ids).to_numpy(zero_copy_only=False)
        double = pc.is_in(here, value_set=added).to_numpy(zero_copy_only=False)
        live = live_mask(root, entry)
        if live is not None:
            gone, double = gone & live, double & live
        removed.append(here.filter(pa.array(gone)))
        doubles.append(here.filter(pa.array(double & ~gone)))
        if (gone | double).any():
            dead[number] = np.flatnonzero(gone | double | (False if live is None else ~live))
    found, twice = pa.concat_arrays(removed), pa.concat_arrays(doubles)
    if len(twice) and not config.replace:
        raise MapError(
            f"the map has {len(twice)} of the added photos already, such as {twice[0]}: "
            "set replace=true, or leave them out"
        )
    if len(found) < len(ids) and not config.ignore_unknown:
        unknown = ids.filter(pc.invert(pc.is_in(ids, value_set=found)))
        raise MapError(
            f"the map lacks {len(unknown)} of the {len(ids)} photos to remove, such as {unknown[0]}: "
            "correct the list, or set ignore_unknown=true"
        )
    return dead, len(found), len(twice)


def _ids_of(root: str, entry: Mapping[str, Any]) -> pa.Array:
    """image_id (n,) of all rows of a shard, memory-mapped."""
    path = shard_folder(root, entry["shard"]["shard_id"]) / ROWS_FILE
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise MapError(f"{path} is damaged: {error}") from None
    return table["image_id"].combine_chunks()


def _read_ids(uri: str) -> list[str]:
    suffix = Path(uri).suffix.lower()
    if suffix not in (".parquet", ".csv"):
        lines = storage.read_text(uri).removeprefix("\ufeff").splitlines()
        return [line.strip() for line in lines if line.strip()]
    try:
        table = storage.read_table(uri) if suffix == ".parquet" else _read_csv(uri)
    except pa.ArrowInvalid as error:
        sentence = " ".join(str(error).split())
        raise MapError(f"{storage.resolve(uri)} cannot be read as {suffix}: {sentence}") from None
    columns = table.column_names.count("image_id")
    if columns != 1:
        raise MapError(
            f"{storage.resolve(uri)} has {columns} columns image_id: name the ids to remove in one"
        )
    ids = table["image_id"]
    if pa.types.is_null(ids.type):
        return []
    if pa.types.is_dictionary(ids.type):  # as pandas writes categories
        ids = ids.cast(ids.type.value_type)
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise MapError(f"the column image_id of {storage.resolve(uri)} holds {ids.type}: ids are text")
    found: list[str] = ids.drop_null().to_pylist()
    return found


def _read_csv(uri: str) -> pa.Table:
    with storage.open_read(uri) as file:
        as_text = pyarrow.csv.ConvertOptions(column_types={"image_id": pa.string()})
        return pyarrow.csv.read_csv(file, convert_options=as_text)
