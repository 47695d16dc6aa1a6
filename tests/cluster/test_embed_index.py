"""Embed, index and search with a tiny model and photos drawn here.

What every run has in common goes through a real local Ray: a first run, a continued one, an index. Further cases
run the same jobs with the parts in this process, as each Ray worker takes seconds to import torch.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from placeray import storage
from placeray.cluster import embedding, indexing, searching
from placeray.cluster.embedding import EmbedReport, Workers, embed
from placeray.cluster.indexing import build_index
from placeray.cluster.searching import search_many
from placeray.cluster.updating import update_map
from placeray.contracts import table_manifest, table_schema, validate_table
from placeray.errors import ConfigError, DataError, MapError, StorageError
from placeray.jobspecs.embed import PhotoSelection
from placeray.model.checkpoint import load_checkpoint, save_checkpoint
from placeray.model.describe import EmbedConfig, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.model.selavpr import ModelConfig, build_model
from placeray.retrieval.many import SearchConfig
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.prune import prune
from placeray.retrieval.update import UpdateConfig

PLACES = 14
BROKEN, MISSING, BY_REFERENCE = (
    3,
    7,
    9,
)  # places whose map photo is truncated, gone, or outside the parquet file
TINY = {
    "backbone": {"name": "toy", "embed_dim": 48, "depth": 2, "num_heads": 2, "position_px": 56},
    "float_head": {"kind": "gem", "dim": 32},
    "hash_bits": 128,
    "conv_start": "random",
}
RULE = {"kind": "radius", "radius_m": 25.0}
WORKERS = Workers(num_workers=2, cpus=1, decode_threads=2)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of this test run their parts here, one after the other."""

    def run_parts(parts: Any, worker_cls: Any, worker_kwargs: Any, *, done: Any, **options: Any) -> list[Any]:
        pending = [part for part in parts if done(part) is None]
        worker = worker_cls(**worker_kwargs) if pending else None
        return [worker(part) if part in pending else done(part) for part in parts]

    monkeypatch.setattr(embedding, "run_parts", run_parts)
    monkeypatch.setattr(indexing, "run_parts", run_parts)
    monkeypatch.setattr(searching, "run_parts", run_parts)


def draw_photo(place: int, quality: int) -> bytes:
    """A pattern of large patches that belongs to the place."""
    patches = np.random.default_rng(place).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(patches).resize((80, 60), Image.Resampling.NEAREST).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def photo_row(place: int, role: str, folder: Path) -> dict[str, Any]:
    """A row of images/v1; places are 100 m apart, so only a place's own photo is a right answer."""
    data: bytes | None = draw_photo(place, 95 if role == "database" else 60)
    source = folder / f"{role}-{place}.jpg"
    if role == "database" and place == BROKEN:
        data = data[: len(data) // 2]
    if role == "database" and place in (MISSING, BY_REFERENCE):
        if place == BY_REFERENCE:
            source.write_bytes(data)
        data = None
    return {
        "image_id": hashlib.sha256(source.name.encode()).hexdigest()[:20],
        "dataset": "drawn", "split": "test", "role": role, "city": "nowhere",
        "lat": 37.7 + place * 0.0009, "lon": -122.4, "utm_zone": "10S", "utm_east": 5e5, "utm_north": 4e6 + 100 * place,
        "source_uri": str(source), "image": data,
    }  # fmt: skip


@pytest.fixture(scope="module")
def normalized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A normalized data set of three files: two of database photos, one of queries with two database rows in it."""
    root = tmp_path_factory.mktemp("normalized")
    database = [photo_row(place, "database", root) for place in range(PLACES)]
    queries = [photo_row(place, "query", root) for place in range(PLACES)]
    files = []
    for name, rows in {
        "drawn/test-database/0": database[:6],
        "drawn/test-database/1": database[6:-2],
        "drawn/mixed/0": [*database[-2:], *queries],
    }.items():
        schema = table_schema("images/v1")
        table = pa.table(
            [pa.array([row.get(n) for row in rows], schema.field(n).type) for n in schema.names],
            schema=schema,
        )
        uri = storage.join(str(root), "images", f"{name}.parquet")
        storage.write_table(uri, table, row_group_size=4)
        data = storage.read_bytes(uri)
        digest = hashlib.sha256(data).hexdigest()
        files.append({"path": f"{name}.parquet", "rows": len(rows), "bytes": len(data), "sha256": digest})
    storage.commit_manifest(f"{root}/images", table_manifest("images/v1", files, made_by={}))
    storage.commit_manifest(str(root), {"contract": "normalized/v1", "positive_rules": {"drawn/test": RULE}})
    return str(root)


def make_checkpoint(folder: Path, **changes: Any) -> str:
    model = build_model(ModelConfig.model_validate({**TINY, **changes}))
    card = {
        "preprocessing": PreprocessConfig(size_px=56).id,
        "recipe": None,
        "data_fingerprint": None,
        "metrics": {},
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    save_checkpoint(str(folder), model, card)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def run_embed(normalized: str, checkpoint: str, output: Path, role: str | None) -> EmbedReport:
    config, select = EmbedConfig(batch_size=3), PhotoSelection(dataset="drawn", role=role)
    return embed(config, normalized, checkpoint, str(output), select=select, workers=WORKERS)


@pytest.fixture(scope="module")
def described(
    ray_session: Any, normalized: str, checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder with finished descriptors `database` and `queries`."""
    root = tmp_path_factory.mktemp("described")
    report = run_embed(normalized, checkpoint, root / "database", "database")
    assert (report.read, report.kept) == (PLACES, PLACES - 2)
    assert report.rejected == {"decode_error": 1, "missing_file": 1}
    assert not report.already_finished
    assert (
        "read 14, kept 12, rejected 2 (1 decode_error, 1 missing_file); wrote 32 floats and 128 bits"
        in report.line()
    )
    assert run_embed(normalized, checkpoint, root / "queries", "query").kept == PLACES
    return root


def read_all(folder: Path, contract: str) -> pa.Table:
    """All rows of a published folder, read by its manifest."""
    manifest = storage.read_manifest(str(folder))
    assert manifest["contract"] == contract
    tables = [storage.read_table(storage.join(str(folder), file["path"])) for file in manifest["files"]]
    for table in tables:
        validate_table(table, contract)
    return pa.concat_tables(tables)


def modified(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_descriptors_are_those_of_the_model(described: Path, checkpoint: str) -> None:
    table = read_all(described / "queries", "descriptors/v1")
    loaded = load_checkpoint(checkpoint)
    assert storage.read_manifest(str(described / "queries"))["properties"] == {
        "model_id": loaded.model_id,
        "preprocessing": "platform-56",
        "code_bits": 128,
        "descriptor_dim": 32,
        "images_fingerprint": storage.read_manifest(str(described / "database"))["properties"][
            "images_fingerprint"
        ],
        "positive_rule": RULE,
    }
    for row in table.to_pylist()[:4]:
        place = int(row["source_uri"].rsplit("-", 1)[1].removesuffix(".jpg"))
        expected = describe(loaded.model, decode_to_input(draw_photo(place, 60), loaded.preprocess)[None])
        assert row["code"] == expected.codes[0].tobytes()
        # float16 keeps 11 bits; batches of 3 and of 1 differ in the last bits of float32.
        np.testing.assert_allclose(row["descriptor"], expected.float[0], atol=3e-4)


def test_rejects_say_which_photo_and_why(described: Path) -> None:
    rejects = read_all(described / "database" / "rejects", "rejects/v1").to_pylist()
    found = {Path(row["source_uri"]).name: row["reason"] for row in rejects}
    assert found == {f"database-{BROKEN}.jpg": "decode_error", f"database-{MISSING}.jpg": "missing_file"}
    kept = read_all(described / "database", "descriptors/v1")["source_uri"].to_pylist()
    assert f"database-{BY_REFERENCE}.jpg" in {Path(uri).name for uri in kept}


def test_a_finished_embed_is_left_alone(
    normalized: str, checkpoint: str, described: Path, tmp_path: Path
) -> None:
    before = modified(described)
    again = run_embed(normalized, checkpoint, described / "database", "database")
    assert again.already_finished
    assert "already finished, nothing to do: read 14, kept 12, rejected 2" in again.line()
    assert modified(described) == before
    other = make_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(
        ConfigError, match="holds descriptors of other photos, another model or other settings"
    ):
        run_embed(normalized, other, described / "database", "database")
    with pytest.raises(DataError, match=r"no photo in .* is selected by dataset drawn, role train"):
        run_embed(normalized, checkpoint, tmp_path / "none", "train")


@pytest.mark.usefixtures("without_ray")
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    normalized: str, checkpoint: str, described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_map = str(tmp_path / "map")
    build_index(IndexConfig(rows_per_shard=5), str(described / "database"), place_map)
    for room in (embedding, indexing, searching):
        monkeypatch.delattr(room, "run_parts")
    (tmp_path / "file").write_text("no folder")
    output = tmp_path / "file" / "out"
    for job in (
        lambda: run_embed(normalized, checkpoint, output, "query"),
        lambda: build_index(IndexConfig(), str(described / "database"), str(output)),
        lambda: search_many(SearchConfig(), str(described / "database"), place_map, str(output), num_cpus=1),
    ):
        with pytest.raises(
            StorageError, match=r"cannot write .*/file/out/\w+(\.json)?: .*/file: Not a directory"
        ):
            job()


@pytest.mark.usefixtures("ray_session")
def test_a_broken_embed_continues_with_the_unfinished_files(
    normalized: str, checkpoint: str, described: Path, tmp_path: Path
) -> None:
    output = tmp_path / "database"
    shutil.copytree(described / "database", output)
    (output / "manifest.json").unlink()
    (output / "work/drawn/mixed/0.report.json").unlink()  # killed while this part was written
    (output / "drawn/test-database/1.parquet").write_bytes(b"half")  # and this one lost its bytes
    before = modified(output)
    assert run_embed(normalized, checkpoint, output, "database").kept == PLACES - 2
    touched = {name for name, when in modified(output).items() if before.get(name) != when}
    assert {name for name in touched if name.startswith("drawn")} == {
        "drawn/mixed/0.parquet",
        "drawn/test-database/1.parquet",
    }
    mine, theirs = (storage.read_manifest(str(folder)) for folder in (output, described / "database"))
    assert mine["fingerprint"] == theirs["fingerprint"]


@pytest.mark.usefixtures("ray_session")
def test_index_and_search(described: Path, tmp_path: Path) -> None:
    source, output = str(described / "database"), tmp_path / "map"
    config = IndexConfig(rows_per_shard=5)
    built = build_index(config, source, str(output))
    assert (built.shards_built, built.manifest["version"]) == (3, "v0001")
    assert "read 12, kept 12, rejected 0; wrote 3 of 3 shards, v0001 of" in built.line()
    queries = read_all(described / "queries", "descriptors/v1")
    codes = np.frombuffer(b"".join(queries["code"].to_pylist()), np.uint8).reshape(PLACES, 16)
    floats = np.array(queries["descriptor"].to_pylist(), np.float32)
    with PlaceMap.open(str(output)) as place_map:
        place_map.check_model(**place_map.manifest["model"])
        found = place_map.search(codes, floats, top_k=1)
        answers = place_map.records(found.rows[:, 0], ["lat"])["lat"].to_pylist()
        right = [a == b for a, b in zip(answers, queries["lat"].to_pylist(), strict=True)]
        assert sum(right) == PLACES - 2  # all but the two places whose map photo was rejected


@pytest.mark.usefixtures("ray_session", "without_ray")
def test_a_map_is_kept_current(described: Path, tmp_path: Path) -> None:
    """The map is built here, its update runs on Ray."""
    database, queries, output = (
        str(path) for path in (described / "database", described / "queries", tmp_path / "map")
    )
    build_index(IndexConfig(rows_per_shard=5), database, output)
    before = modified(tmp_path / "map" / "shards")
    photos = read_all(described / "database", "descriptors/v1")
    gone = photos["image_id"][0].as_py()
    change = UpdateConfig(remove=(gone,))
    manifest, line = update_map(change, output, queries, num_workers=1)
    assert f"read {PLACES}, added {PLACES} (of them 0 replaced), removed 1, unknown 0; v0002 of" in line
    assert len(manifest["shards"]) == 3 + 3
    now = modified(tmp_path / "map" / "shards")
    assert before.items() <= now.items()
    with PlaceMap.open(output, verify=True) as place_map:
        assert (len(place_map), place_map.num_live) == (2 * PLACES - 2, 2 * PLACES - 3)
        added = read_all(described / "queries", "descriptors/v1")
        for table, missing in ((added, set()), (photos, {gone})):
            codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8).reshape(-1, 16)
            floats = np.array(table["descriptor"].to_pylist(), np.float32)
            found = place_map.search(codes, floats, top_k=1).rows[:, 0]
            names = place_map.records(found, ["image_id"])["image_id"].to_pylist()
            wanted = table["image_id"].to_pylist()
            assert {name for name, answer in zip(wanted, names, strict=True) if name != answer} == missing
    _, again = update_map(change, output, queries)
    assert "already finished, nothing to do" in again
    # Building the same map again does not undo its update.
    rebuilt = build_index(IndexConfig(rows_per_shard=5), database, output)
    assert (rebuilt.already_finished, rebuilt.manifest["version"]) == (True, "v0002")
    prune(output, 1)  # nor when the version that was built is gone
    rebuilt = build_index(IndexConfig(rows_per_shard=5), database, output)
    assert (rebuilt.already_finished, rebuilt.manifest["version"]) == (True, "v0002")
    with pytest.raises(MapError, match=f"has {PLACES} of the added photos already"):
        update_map(UpdateConfig(), output, queries)


@pytest.mark.usefixtures("without_ray")
def test_index_resumes_and_makes_versions(described: Path, tmp_path: Path) -> None:
    source, output = str(described / "database"), tmp_path / "map"
    config = IndexConfig(rows_per_shard=5)
    build_index(config, source, str(output))
    code = np.zeros((1, 16), np.uint8)
    with PlaceMap.open(str(output)) as place_map:
        found = place_map.search(code, None, top_k=12)
        check_no_op_and_resume(config, source, output)
        again = place_map.search(code, None, top_k=12)  # the open map was not disturbed
        np.testing.assert_array_equal(again.rows, found.rows)
    other = build_index(IndexConfig(rows_per_shard=5, descriptor_type="float16"), source, str(output))
    assert (other.manifest["version"], other.shards_built) == ("v0002", 3)
    back = build_index(config, source, str(output))  # its shards are there: only a manifest is written
    assert (back.already_finished, back.manifest["version"]) == (True, "v0003")
    with PlaceMap.open(str(output)) as place_map:
        assert place_map.version == "v0003"


@pytest.mark.usefixtures("without_ray")
def test_lists_are_built_calibrated_and_repaired(described: Path, tmp_path: Path) -> None:
    source, output = str(described / "database"), tmp_path / "map"
    config = IndexConfig(rows_per_shard=5, lists=4, hit_rate=1.0)
    built = build_index(config, source, str(output), queries=str(described / "queries"))
    index = built.manifest["index"]
    assert (index["type"], len(index["files"])) == ("ivf", 2)  # the quantizer, and one run of all shards
    assert index["calibration"]["hit_rate"] == 1.0
    assert "queries of" in index["calibration"]["queries"]
    lost = output / index["files"][1] / "order.u32"
    data = lost.read_bytes()
    lost.unlink()
    again = build_index(config, source, str(output), queries=str(described / "queries"))
    assert (again.already_finished, again.shards_built, again.manifest["version"]) == (False, 0, "v0001")
    assert lost.read_bytes() == data
    with PlaceMap.open(str(output)) as place_map:
        codes = place_map.codes_of(np.arange(12))
        assert (place_map.search(codes, None, top_k=1, mode="ivf").hamming == 0).all()


def check_no_op_and_resume(config: IndexConfig, source: str, output: Path) -> None:
    before = modified(output)
    again = build_index(config, source, str(output))
    assert again.already_finished
    assert again.line().startswith("index: already finished, nothing to do: read 12")
    assert {k: v for k, v in modified(output).items() if k != "CURRENT"} == {
        k: v for k, v in before.items() if k != "CURRENT"
    }
    lost = sorted(output.glob("shards/*/desc.i8"))[1]
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(MapError, match=r"desc\.i8 is missing"):
        PlaceMap.open(str(output))
    repaired = build_index(config, source, str(output))
    assert (repaired.shards_built, repaired.manifest["version"]) == (1, "v0001")
    assert lost.read_bytes() == data
    touched = {
        Path(name).parts[1]
        for name, when in modified(output).items()
        if before.get(name) != when and "shards" in name
    }
    assert touched == {lost.parent.name}


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("branch", ["float_head", "hash_bits"])
def test_models_with_one_branch(normalized: str, tmp_path: Path, branch: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", **{branch: None})
    run_embed(normalized, checkpoint, tmp_path / "database", "database")
    build_index(IndexConfig(), str(tmp_path / "database"), str(tmp_path / "map"))
    table = read_all(tmp_path / "database", "descriptors/v1")
    with PlaceMap.open(str(tmp_path / "map")) as place_map:
        ids = place_map.rows(["image_id"])["image_id"].to_pylist()
        if branch == "float_head":
            assert (place_map.code_bits, place_map.descriptor_dim) == (128, 0)
            found = place_map.search(np.frombuffer(table["code"][0].as_py(), np.uint8)[None], None, top_k=1)
        else:
            assert (place_map.code_bits, place_map.descriptor_dim) == (0, 32)
            query = np.array([table["descriptor"][0].as_py()], np.float32)
            found = place_map.search(None, query, top_k=1, exhaustive=True)
    assert ids[found.rows[0, 0]] == table["image_id"][0].as_py()


@pytest.mark.usefixtures("ray_session")
def test_many_queries_on_ray(described: Path, tmp_path: Path, run_job: Callable[..., str]) -> None:
    place_map, output = str(tmp_path / "map"), tmp_path / "answers"
    build_index(IndexConfig(rows_per_shard=5), str(described / "database"), place_map)
    report = search_many(SearchConfig(top_k=3), str(described / "queries"), place_map, str(output))
    assert report.line().startswith(
        f"search: {PLACES} queries, {PLACES * 3} answers from v0001 of the map; wrote {output} in"
    )
    assert "queries/s" in report.line()
    rows = read_all(output, "answers/v1").to_pylist()
    asked = read_all(described / "queries", "descriptors/v1").to_pylist()
    right = [
        row["answers"][0]["lat"] == query["lat"] and abs(row["estimated_lat"] - query["lat"]) < 1e-9
        for row, query in zip(rows, asked, strict=True)
    ]
    assert sum(right) == PLACES - 2  # all but the two places whose map photo was rejected
    before = modified(output)
    printed = run_job(
        "search", "toy", f"queries={described / 'queries'}", f"map={place_map}", f"output={output}",
        "calibration=null", "search={top_k: 3}",
    )  # fmt: skip
    assert printed.startswith(
        f"search: already finished, nothing to do: {PLACES} queries, {PLACES * 3} answers"
    )
    assert modified(output) == before
    printed = run_job(
        "inspect_map", "toy", f"map={place_map}", "check.timed_singles=2", "check.timed_batches=1"
    )
    assert "verified: all" in printed
    assert printed.splitlines()[-1].startswith(
        f"inspect_map: 3 shards, {PLACES - 2} photos, 0 removed, v0001, hit"
    )
    printed = run_job("inspect_map", "toy", f"map={place_map}", "format=json", "check.check_queries=0")
    assert json.loads(printed)["bytes"]["codes"] == (PLACES - 2) * 16


@pytest.mark.usefixtures("without_ray")
def test_a_broken_search_continues_with_the_unfinished_files(
    described: Path, checkpoint: str, tmp_path: Path
) -> None:
    queries, place_map, output = str(described / "database"), str(tmp_path / "map"), tmp_path / "answers"
    build_index(IndexConfig(rows_per_shard=5), queries, place_map)

    def search(**settings: Any) -> Any:
        config = SearchConfig.model_validate({"top_k": 2, **settings})
        return search_many(config, queries, place_map, str(output), num_cpus=1)

    search()
    fingerprint = storage.read_manifest(str(output))["fingerprint"]
    (output / "manifest.json").unlink()
    (output / "drawn/mixed/0.parquet").unlink()  # killed before this file and while
    (output / "drawn/test-database/1.parquet").write_bytes(b"half")  # this one was written
    before = modified(output)
    assert not search().already_finished
    touched = {name for name, when in modified(output).items() if before.get(name) != when}
    assert {name for name in touched if name.endswith(".parquet")} == {
        "drawn/mixed/0.parquet",
        "drawn/test-database/1.parquet",
    }
    assert storage.read_manifest(str(output))["fingerprint"] == fingerprint
    with pytest.raises(ConfigError, match="holds answers to other queries, of another version"):
        search(near_m=150)
    build_index(IndexConfig(rows_per_shard=5, descriptor_type="float16"), queries, place_map)  # v0002
    with pytest.raises(ConfigError, match="holds answers to other queries, of another version"):
        search()


@pytest.mark.usefixtures("without_ray")
def test_queries_of_another_model_are_refused_before_anything_is_written(
    normalized: str, described: Path, tmp_path: Path
) -> None:
    place_map, other = str(tmp_path / "map"), tmp_path / "other"
    build_index(IndexConfig(rows_per_shard=5), str(described / "database"), place_map)
    run_embed(normalized, make_checkpoint(tmp_path / "model", seed=5), other, "query")
    with pytest.raises(MapError, match="the queries do not fit the map"):
        search_many(SearchConfig(), str(other), place_map, str(tmp_path / "answers"), num_cpus=1)
    with pytest.raises(DataError, match=r"no described photos: run jobs/embed.py first"):
        search_many(SearchConfig(), f"{normalized}/images", place_map, str(tmp_path / "answers"), num_cpus=1)
    assert not (tmp_path / "answers").exists()
