"""Pitts30k and Pitts250k in their original form: `datasets/pitts30k_<split>.mat` beside the raw folders 000,
001 ...

Sources: `Nanne/pytorch-NetVlad:pittsburgh.py` (fields of dbStruct), `Tong-Jin01/Unified_dataset` (training
places). UTM comes from the file (zone 17T), the heading is the yaw inside the panorama: nothing proves that
it points north.
"""

import io
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.photos import Draft
from placeray.datasets.source import CellPlaces, Listing, SourceBase, SplitName
from placeray.errors import DataError

ZONE = "17T"
# Positions in the dbStruct record.
DATABASE_NAMES, DATABASE_UTM, QUERY_NAMES, QUERY_UTM = 1, 2, 3, 4


class PittsMat(SourceBase):
    """One split of Pittsburgh as its .mat file lists it."""

    kind: Literal["pitts30k_mat"]
    name: str = "pitts30k"
    split: SplitName = "train"
    mat_file: str = Field(default="datasets/{name}_{split}.mat", description="dbStruct file below root")
    database_folder: str = Field(
        default="", description="folder of the database names below root (Matlab: images)"
    )
    query_folder: str = Field(
        default="queries_real", description="folder of the query names below root (Matlab: queries)"
    )
    places: CellPlaces = CellPlaces()


def list_photos(config: PittsMat) -> Listing:
    """Database and queries of the .mat file; for split train both together as photos of places."""
    mat_file = config.mat_file.format(name=config.name.split("/")[-1], split=config.split)
    struct = _read_struct(config, storage.join(config.root, mat_file))
    return photos.join_listings(
        config,
        [
            _list_role(
                config, "database", config.database_folder, struct[DATABASE_NAMES], struct[DATABASE_UTM]
            ),
            _list_role(config, "query", config.query_folder, struct[QUERY_NAMES], struct[QUERY_UTM]),
        ],
    )


def _read_struct(config: PittsMat, uri: str) -> Any:
    """The dbStruct record: a tuple of at least five fields."""
    import scipy.io  # here, because every worker of every source loads this file
    from scipy.io.matlab import MatReadError

    data = storage.read_bytes(uri)
    try:
        struct = scipy.io.loadmat(io.BytesIO(data))["dbStruct"].item()
    except KeyError:
        raise DataError(f"{config.key}: {uri} holds no dbStruct") from None
    except (ValueError, TypeError, IndexError, NotImplementedError, OSError, MatReadError) as error:
        raise DataError(f"{config.key}: {uri} cannot be read as a Matlab file: {error}") from None
    if len(struct) <= QUERY_UTM:
        raise DataError(f"{config.key}: dbStruct in {uri} has {len(struct)} fields, expected 10")
    return struct


def _list_role(config: PittsMat, role: str, folder: str, names: Any, utm: Any) -> Listing:
    """One photo per name; `utm` is (2, n) in the file, east above north."""
    texts = [str(cell[0].item()) for cell in names]
    if not texts and not np.size(utm):
        utm = np.empty((2, 0))  # Matlab writes an empty list as 0 x 0
    if np.shape(utm) != (2, len(texts)):
        raise DataError(
            f"{config.key}: {len(texts)} {role} names but positions of shape {np.shape(utm)}, not (2, n)"
        )
    prefix = folder.strip("/")
    paths = [f"{prefix}/{text}" if prefix else text for text in texts]
    draft = Draft(config, paths)
    bare = photos.basenames(draft.paths)
    named = pc.match_substring_regex(bare, r"^\d{6}_pitch\d+_yaw\d+\.")
    draft.mark(
        ~named.to_numpy(zero_copy_only=False), "bad_name", "the name is not <panorama>_pitch<p>_yaw<y>"
    )
    yaw, _ = photos.parse_numbers(pc.replace_substring_regex(bare, r"^.*_yaw(\d+)\..*$", r"\1"))
    draft.number(utm_east=utm[0], utm_north=utm[1], heading_deg=(yaw - 1) * 30.0)
    draft.mark(
        _absent(config, prefix, draft.paths),
        "missing_file",
        f"named by the .mat file as {role}, but not there",
    )
    draft.text(
        role="train" if config.is_training else role,
        city=config.name.split("/")[-1],
        utm_zone=ZONE,
        panorama_id=pc.if_else(named, pc.utf8_slice_codeunits(bare, 0, 6), pa.scalar(None, pa.string())),
    )
    return draft.finish()


def _absent(config: PittsMat, prefix: str, paths: pa.Array) -> photos.Mask:
    """Which files are not there. The folders of the names are listed, not the whole root (250k has 254,064
    photos).
    """
    folders = pc.unique(pc.replace_substring_regex(paths, r"/[^/]*$", "")).to_pylist()
    there: list[str] = []
    for folder in folders:
        full = storage.join(config.root, folder)
        if storage.exists(full):
            there += [f"{folder}/{name}" for name in photos.list_images(full)]
    return pc.invert(pc.is_in(paths, value_set=pa.array(there, pa.string()))).to_numpy(zero_copy_only=False)
