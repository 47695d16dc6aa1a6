"""A made-up street grid: descriptors of a map and of queries, written and indexed like real ones."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.geo import from_utm
from placeray.retrieval.build import build_shard
from placeray.retrieval.manifest import compose, publish
from placeray.retrieval.plan import IndexConfig, plan_map

BITS, DIM = 128, 32


class World(NamedTuple):
    """Where the photos of a map and of its queries are, and which place each shows."""

    centres: Any  # (P, D) what the places look like
    map_place: Any  # (N,)
    map_east: Any
    query_place: Any  # (Q,)
    query_east: Any


@pytest.fixture(scope="session")
def world() -> World:
    """60 places 300 m apart along a street, 3 map photos and 2 queries each, a few metres off."""
    draw = np.random.default_rng(5)
    map_place, query_place = np.repeat(np.arange(60), 3), np.repeat(np.arange(60), 2)
    return World(
        draw.standard_normal((60, DIM)),
        map_place,
        500_000 + 300.0 * map_place + draw.uniform(-5, 5, len(map_place)),
        query_place,
        500_000 + 300.0 * query_place + draw.uniform(-5, 5, len(query_place)),
    )


def described(world: World, place: Any, noise: float, seed: int) -> tuple[Any, Any]:
    """Codes (n, 16) and unit floats (n, 32) of photos of these places; codes are rougher than floats."""
    draw = np.random.default_rng(seed)
    floats = world.centres[place] + noise * draw.standard_normal((len(place), DIM))
    projection = np.random.default_rng(0).standard_normal((DIM, BITS))
    rough = (floats + 0.5 * noise * draw.standard_normal(floats.shape)) @ projection
    return np.packbits(rough >= 0, axis=1), floats / np.linalg.norm(floats, axis=1, keepdims=True)


def descriptors_table(prefix: str, east: Any, codes: Any, floats: Any, frames: Any = None) -> pa.Table:
    """descriptors/v1 rows at these eastings of zone 10S."""
    north = np.full(len(east), 4_100_000.0)
    lat, lon = from_utm(east, north, "10S")
    schema = table_schema("descriptors/v1", {"descriptor": DIM if floats is not None else 0})
    columns: dict[str, Any] = {name: [None] * len(east) for name in schema.names}
    columns.update(
        image_id=[f"{prefix}{row:04d}" for row in range(len(east))],
        source_uri=[f"photos/{prefix}{row:04d}.jpg" for row in range(len(east))],
    )
    if frames is None:
        columns.update(lat=lat, lon=lon, utm_east=east, utm_north=north, utm_zone=["10S"] * len(east))
    else:
        columns["frame"] = [int(frame) for frame in frames]
    if codes is not None:
        columns["code"] = [code.tobytes() for code in codes]
    if floats is not None:
        columns["descriptor"] = list(floats.astype(np.float16))
    return pa.table({n: pa.array(v, schema.field(n).type) for n, v in columns.items()}, schema=schema)


def write_folder(root: str, contract: str, table: pa.Table, properties: dict[str, Any]) -> str:
    """A finished folder of one parquet file."""
    storage.write_table(storage.join(root, "part.parquet"), table, row_group_size=50)
    data = storage.read_bytes(storage.join(root, "part.parquet"))
    entry = {"path": "part.parquet", "rows": len(table), "bytes": len(data)}
    files = [{**entry, "sha256": hashlib.sha256(data).hexdigest()}]
    storage.commit_manifest(root, table_manifest(contract, files, made_by={}, properties=properties))
    return root


def write_descriptors(root: str, table: pa.Table, model_id: str, rule: dict[str, Any]) -> str:
    properties = {
        "model_id": model_id,
        "preprocessing": "platform-56",
        "code_bits": BITS if table["code"].null_count == 0 else 0,
        "descriptor_dim": DIM if table["descriptor"].null_count == 0 else 0,
        "images_fingerprint": "f" * 64,
        "positive_rule": rule,
    }
    return write_folder(root, "descriptors/v1", table, properties)


class Files(NamedTuple):
    map: str
    queries: str


@pytest.fixture
def make_system(tmp_path: Path, world: World) -> Callable[..., Files]:
    """`make_system(name, noise, codes=True, floats=True, frames=False) -> map and queries folders`."""

    def make(
        name: str, noise: float, *, codes: bool = True, floats: bool = True, frames: bool = False
    ) -> Files:
        model_id = hashlib.sha256(f"{name} {noise}".encode()).hexdigest()
        rule = {"kind": "frames", "window": 0} if frames else {"kind": "radius", "radius_m": 25.0}
        sides = {}
        for side, place, east, seed in (
            ("m", world.map_place, world.map_east, 1),
            ("q", world.query_place, world.query_east, 2),
        ):
            packed, unit = described(world, place, noise, seed)
            table = descriptors_table(
                side, east, packed if codes else None, unit if floats else None, place if frames else None
            )
            sides[side] = write_descriptors(str(tmp_path / name / side), table, model_id, rule)
        root = str(tmp_path / name / "map")
        plan = plan_map(sides["m"], IndexConfig(rows_per_shard=100))
        publish(root, compose(plan, [build_shard(part, sides["m"], root) for part in plan["shards"]]))
        return Files(root, sides["q"])

    return make


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def images(tmp_path: Path, world: World) -> str:
    """images/v1 with a flat-coloured photo for every map photo and query; the colour tells the place.

    The first query is stored by reference, the second query's file is gone.
    """
    schema = table_schema("images/v1")
    rows = []
    for prefix, places in (("m", world.map_place), ("q", world.query_place)):
        for row, place in enumerate(places):
            rows.append((f"{prefix}{row:04d}", jpeg((40 + 3 * int(place), 200 - 3 * int(place), 90))))
    here = tmp_path / "q0000.jpg"
    here.write_bytes(dict(rows)["q0000"])
    uris = {"q0000": str(here), "q0001": str(tmp_path / "gone.jpg")}
    columns: dict[str, Any] = {name: [None] * len(rows) for name in schema.names}
    columns.update(
        image_id=[name for name, _ in rows],
        dataset=["made-up"] * len(rows),
        split=["test"] * len(rows),
        role=["database" if name[0] == "m" else "query" for name, _ in rows],
        source_uri=[uris.get(name, f"photos/{name}.jpg") for name, _ in rows],
        image=[None if name in uris else data for name, data in rows],
    )
    table = pa.table({n: pa.array(v, schema.field(n).type) for n, v in columns.items()}, schema=schema)
    return write_folder(str(tmp_path / "images"), "images/v1", table, {})


def block_photo(seed: int) -> bytes:
    """A picture of coarse random blocks: unlike every other one."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize((80, 60), Image.Resampling.NEAREST).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def small_model() -> Any:
    """A model with both branches, a few thousand weights, as a checkpoint would give it."""
    from placeray.model.backbone import BackboneConfig
    from placeray.model.checkpoint import LoadedModel, export_weights
    from placeray.model.selavpr import ModelConfig, build_model
    from placeray.model.weights import weights_id

    backbone = BackboneConfig(name="toy", embed_dim=32, depth=2, num_heads=2)
    config = ModelConfig(backbone=backbone, float_head={"kind": "gem", "dim": DIM}, hash_bits=BITS)
    model = build_model(config).eval()
    return LoadedModel(model, config, None, weights_id(export_weights(model)))


@pytest.fixture
def photo_map(tmp_path: Path, small_model: Any) -> Any:
    """A map of 20 photos of blocks, 300 m apart, described by the small model; and their eastings."""
    import torch

    from placeray.model.describe import describe
    from placeray.model.preprocess import PreprocessConfig, decode_to_input
    from placeray.retrieval.place_map import PlaceMap

    preprocess = PreprocessConfig(size_px=56)
    photos = [block_photo(seed) for seed in range(20)]
    found = describe(small_model.model, torch.stack([decode_to_input(data, preprocess) for data in photos]))
    east = 500_000 + 300.0 * np.arange(20)
    table = descriptors_table("m", east, found.codes, found.float)
    source = write_descriptors(
        str(tmp_path / "d"), table, small_model.model_id, {"kind": "radius", "radius_m": 25.0}
    )
    root = str(tmp_path / "photo-map")
    plan = plan_map(source, IndexConfig())
    publish(root, compose(plan, [build_shard(part, source, root) for part in plan["shards"]]))
    with PlaceMap.open(root) as place_map:
        yield place_map, east


@pytest.fixture(scope="session")
def make_photo() -> Callable[[int], bytes]:
    """`make_photo(seed) -> JPEG`, the photos of `photo_map`."""
    return block_photo
