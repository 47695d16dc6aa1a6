"""Localization: a photo in, the map photos that show the same place out, with a position and how sure it is.

A photo is preprocessed as the photos of the map were, described by the model of the map (another one is
refused), and searched. Needs neither Ray nor MLflow.

Shape letters: `Q` photos asked about, `K` matches of each.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator

from placeray import storage
from placeray.errors import DataError
from placeray.model.checkpoint import LoadedModel
from placeray.model.describe import EmbedConfig, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.retrieval.filters import Filter
from placeray.retrieval.many import matches_to_read
from placeray.retrieval.matched import Confidence, cosines, known, texts_at, values_at
from placeray.retrieval.place_map import Mode, PlaceMap
from placeray.retrieval.position import Position, PositionConfig, estimate_position

Photo = bytes | str | os.PathLike[str]
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COLUMNS = ("image_id", "lat", "lon", "frame", "source_uri")


class LocalizeConfig(PositionConfig):
    """How photos are searched and a position is read from the matches."""

    top_k: int = Field(default=5, ge=1, description="matches returned for each photo")
    shortlist: int | None = Field(
        default=None,
        ge=1,
        description="candidates stage 1 hands to stage 2; null grows with the map, from 100",
    )
    mode: Mode = Field(
        default="auto", description="exact, ivf, or auto: ivf where the map has inverted lists"
    )
    within: Filter = Field(
        default=Filter(), description="which photos of the map may answer: an area, a direction, a time"
    )
    one_per_panorama: bool = Field(default=False, description="show the best photo of each panorama only")
    embed: EmbedConfig = Field(
        default=EmbedConfig(batch_size=16), description="how photos go through the model"
    )

    @model_validator(mode="after")
    def _shortlist_covers_top_k(self) -> Self:
        if self.shortlist is not None and self.shortlist < self.top_k:
            raise ValueError(
                f"shortlist={self.shortlist} is smaller than top_k={self.top_k}: "
                "stage 2 can only return what stage 1 found"
            )
        return self


@dataclass(frozen=True)
class Match:
    """One map photo that may show the place asked about."""

    image_id: str
    lat: float | None
    lon: float | None
    frame: int | None
    distance: int | None  # bits of the binary codes that differ; None for a map without codes
    similarity: float  # cosine of the float descriptors; of the +-1 codes for a map without floats
    confidence: float | None  # probability that this match is right: known for the best match only
    source_uri: str


@dataclass(frozen=True)
class Located:
    """The answer for one photo."""

    photo: str
    matches: tuple[Match, ...]
    position: Position | None  # None when the map has no positions
    confidence: float | None  # None: the map was never calibrated, so nothing is known


def find_photos(source: str) -> list[str]:
    """The photo files of a folder, recursively and sorted, or the file itself.

    Raises:
        DataError: the folder holds no photo.
        StorageError: there is no such file or folder.
    """
    if source.lower().endswith(PHOTO_SUFFIXES):
        storage.size(source)
        return [source]
    found = [uri for uri in storage.list_files(source) if uri.lower().endswith(PHOTO_SUFFIXES)]
    if not found:
        raise DataError(f"{storage.resolve(source)} holds no photo ({', '.join(PHOTO_SUFFIXES)})")
    return found


def localize(
    photos: Sequence[Photo],
    model: LoadedModel,
    place_map: PlaceMap,
    calibration: Confidence | None = None,
    config: LocalizeConfig | None = None,
) -> list[Located]:
    """Find each photo on the map.

    Args:
        photos: encoded bytes, paths or uris; photos of a folder come from `find_photos`.
        model: the model whose descriptors the map holds.
        calibration: from the evaluation of this map; without it confidence stays unknown.

    Raises:
        MapError: the map was made by another model.
        DataError: a photo cannot be decoded; the message names it.
    """
    config = config or LocalizeConfig()
    check_model(model, place_map)
    preprocess = PreprocessConfig.from_id(str(place_map.manifest["model"]["preprocessing"]))
    found: list[Located] = []
    for first in range(0, len(photos), config.embed.batch_size):
        part = photos[first : first + config.embed.batch_size]
        names = [_name(photo, first + i) for i, photo in enumerate(part)]
        inputs = torch.stack(
            [_input(photo, name, preprocess) for photo, name in zip(part, names, strict=True)]
        )
        found.extend(_locate(names, inputs, model, place_map, calibration, config))
    return found


def check_model(model: LoadedModel, place_map: PlaceMap) -> None:
    """Raises MapError when the map was not made by this model: its answers would look like answers."""
    place_map.check_model(
        model.model_id,
        model.model.code_bits,
        model.model.descriptor_dim,
        str(place_map.manifest["model"]["preprocessing"]),
    )


def _locate(
    names: Sequence[str],
    inputs: torch.Tensor,
    model: LoadedModel,
    place_map: PlaceMap,
    calibration: Confidence | None,
    config: LocalizeConfig,
) -> Iterator[Located]:
    described = describe(model.model, inputs, config.embed.precision)
    result = place_map.search(
        described.codes,
        described.float,
        top_k=matches_to_read(place_map, config.top_k, config.shortlist, calibration),
        shortlist=config.shortlist,
        exhaustive=described.codes is None,
        mode=config.mode,
        within=config.within,
        one_per_panorama=config.one_per_panorama,
    )
    similarity = cosines(result, place_map)
    records = place_map.records(
        result.rows[result.rows >= 0], COLUMNS
    )  # of all real matches, in reading order
    lat, lon, frame = (values_at(records, name, result.rows) for name in ("lat", "lon", "frame"))
    sure = (
        calibration.probability(similarity, lat, lon, frame) if calibration else np.full(len(names), np.nan)
    )
    texts = {name: texts_at(records, name, result.rows) for name in ("image_id", "source_uri")}
    for q, name in enumerate(names):
        confidence = known(sure[q])
        matches = tuple(
            Match(
                image_id=texts["image_id"][q][k],
                lat=known(lat[q, k]),
                lon=known(lon[q, k]),
                frame=None if np.isnan(frame[q, k]) else int(frame[q, k]),
                distance=int(result.hamming[q, k]) if result.hamming[q, k] >= 0 else None,
                similarity=float(similarity[q, k]),
                confidence=confidence if k == 0 else None,
                source_uri=texts["source_uri"][q][k],
            )
            for k in range(config.top_k)
            if result.rows[q, k] >= 0
        )
        yield Located(name, matches, estimate_position(lat[q], lon[q], similarity[q], config), confidence)


def _input(photo: Photo, name: str, preprocess: PreprocessConfig) -> torch.Tensor:
    data = photo if isinstance(photo, bytes) else storage.read_bytes(str(photo))
    try:
        return decode_to_input(data, preprocess)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _name(photo: Photo, number: int) -> str:
    return f"photo {number + 1}" if isinstance(photo, bytes) else str(photo)
