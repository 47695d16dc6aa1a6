"""Pitts30k as NetVLAD published it: `datasets/*.mat`, folders `000/ ...`, and queries below `queries_real/`.

`scipy.io.loadmat(path)["dbStruct"].item()` gives the ten fields of `Nanne/pytorch-NetVlad:pittsburgh.py`.
"""

import io
from typing import Any

import numpy as np
import scipy.io

from placeray.toycity.config import ToyCityConfig
from placeray.toycity.layouts.panoramas import SPLITS, Tile, split_tiles
from placeray.toycity.plan import LayoutPlan

DISTRICT = 41
SHIFT_M = 40_000.0  # streets of their own, north of those of the '@' form
PHOTOS_PER_FOLDER = 1000


def plan_pitts30k_mat(config: ToyCityConfig) -> LayoutPlan:
    """The three splits."""
    plan = LayoutPlan("pitts30k_mat")
    sizes = config.pitts30k_mat
    if not sizes.places:
        return plan
    for split in SPLITS:
        tiles = split_tiles(config, sizes, DISTRICT, SHIFT_M, split)
        database = [(_raw_name(tile), tile) for tile in tiles if not tile.is_query]
        queries = [(_raw_name(tile), tile) for tile in tiles if tile.is_query]
        plan.photos += [tile.photo.task(config, f"pitts30k_mat/{name}") for name, tile in database]
        plan.photos += [
            tile.photo.task(config, f"pitts30k_mat/queries_real/{name}") for name, tile in queries
        ]
        table = f"pitts30k_mat/datasets/pitts30k_{split}.mat"
        if config.faults and split == "train":
            _plant(plan, config, table, database)
        plan.files[table] = _mat_file(split, database, queries)
        plan.read[split] = len(database) + len(queries)
        plan.places[split] = sizes.places if split == "train" else sizes.held_out_places
    return plan


def _raw_name(tile: Tile) -> str:
    return f"{tile.panorama // PHOTOS_PER_FOLDER:03d}/{tile.stem}.jpg"


def _plant(plan: LayoutPlan, config: ToyCityConfig, table: str, database: list[tuple[str, Tile]]) -> None:
    """A photo that the table names and nobody has, and one that is cut short."""
    for index, (fault, expected) in enumerate(
        (("missing_file", "missing_file"), ("truncated_jpeg", "decode_error"))
    ):
        tile = database[index][1]
        name = f"299/{299_990 + index:06d}_pitch1_yaw{tile.yaw}.jpg"
        database.append((name, tile))
        path = f"pitts30k_mat/{name}"
        if fault != "missing_file":
            plan.photos.append(tile.photo.task(config, path, damage="truncated"))
        plan.add_fault("train", path, fault, expected, table, len(database) - 1)


def _mat_file(split: str, database: list[tuple[str, Tile]], queries: list[tuple[str, Tile]]) -> bytes:
    """The struct dbStruct; the file's date is a constant, so that the same city has the same bytes."""
    structure: dict[str, Any] = {
        "whichSet": split,
        "dbImageFns": _cells(database),
        "utmDb": _metres(database),
        "qImageFns": _cells(queries),
        "utmQ": _metres(queries),
        "numImages": float(len(database)),
        "numQueries": float(len(queries)),
        "posDistThr": 25.0,
        "posDistSqThr": 625.0,
        "nonTrivPosDistSqThr": 100.0,
    }
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"dbStruct": structure})
    header = b"MATLAB 5.0 MAT-file, toy city"
    return header.ljust(116) + buffer.getvalue()[116:]


def _cells(entries: list[tuple[str, Tile]]) -> Any:
    """File names as an n x 1 cell array."""
    cells = np.empty((len(entries), 1), dtype=object)
    cells[:, 0] = [name for name, _ in entries]
    return cells


def _metres(entries: list[tuple[str, Tile]]) -> Any:
    """UTM as 2 x n."""
    return np.array([[tile.photo.east_m, tile.photo.north_m] for _, tile in entries]).reshape(-1, 2).T
