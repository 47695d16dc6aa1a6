"""Localization: a photo in, the map photos that show the same place out, with a position and how sure it is.

A photo is preprocessed as the photos of the map were, described by the model of the map (another one is
refused), and searched. Needs neither Ray nor MLflow.

Shape letters: `Q` photos asked about, `K` matches of each.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from placeray import storage
from placeray.config import Config
from placeray.errors import DataError
from placeray.geo import distance_m
from placeray.model.checkpoint import LoadedModel
from placeray.model.describe import EmbedConfig, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.retrieval.answers import SearchResult
from placeray.retrieval.filters import Filter
from placeray.retrieval.place_map import Mode, PlaceMap

Floats = NDArray[np.float64]
Photo = bytes | str | os.PathLike[str]
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MATCHES_READ = 10
COLUMNS = ("image_id", "lat", "lon", "frame", "source_uri")


class LocalizeConfig(Config):
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
    cluster_m: float = Field(
        default=50.0,
        gt=0,
        description="matches this near to the best one take part in the position, in metres",
    )
    sharpness: float = Field(
        default=20.0,
        ge=0,
        description="how fast a less similar match loses weight: exp(-sharpness x difference)",
    )
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


class Confidence(Protocol):
    """What turns matches into a probability, such as evaluation.confidence.Calibration."""

    @property
    def depth(self) -> int:
        """Matches it wants to see."""
        ...

    def probability(self, similarity: Floats, lat: Floats, lon: Floats, frame: Floats) -> Floats:
        """(Q,) probability that the best match is right, from (Q, K) values; NaN where unknown."""
        ...


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
class Position:
    """Where the photo was taken, as the matches that agree with the best one say."""

    lat: float
    lon: float
    spread_m: float | None  # weighted mean distance of those matches from it; None for a single match
    matches: int  # how many took part


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


def estimate_position(
    lat: Floats, lon: Floats, similarity: Floats, config: LocalizeConfig
) -> Position | None:
    """The weighted mean of the matches near the best one.

    A true match is seldom alone: neighbouring map photos show the same facades. Averaging those that lie
    within `cluster_m` of the best match, each weighted by exp(-sharpness * (best - similarity)), is nearer
    the truth than the best match alone when the map is dense, and the same where it is sparse.

    Args:
        lat, lon, similarity: (K,) best first; NaN where unknown or padded.

    Returns:
        None when the best match has no position.
    """
    if len(lat) == 0 or np.isnan(lat[0]) or np.isnan(lon[0]):
        return None
    # A comparison with NaN is False: matches without a position drop out.
    near = (distance_m(lat[0], lon[0], lat, lon) <= config.cluster_m) & ~np.isnan(similarity)
    weight = np.exp(-config.sharpness * (similarity[0] - similarity[near]))
    weight /= weight.sum()
    turn = (lon[near] - lon[0] + 180.0) % 360.0 - 180.0  # the mean of 179.99 and -179.99 is not 0
    middle_lat = float(lat[0] + weight @ (lat[near] - lat[0]))
    middle_lon = float((lon[0] + weight @ turn + 180.0) % 360.0 - 180.0)
    spread = float(weight @ distance_m(middle_lat, middle_lon, lat[near], lon[near]))
    # One match cannot disagree with itself: its spread of 0 m would read like certainty.
    count = int(near.sum())
    return Position(middle_lat, middle_lon, spread if count > 1 else None, count)


def _locate(
    names: Sequence[str],
    inputs: torch.Tensor,
    model: LoadedModel,
    place_map: PlaceMap,
    calibration: Confidence | None,
    config: LocalizeConfig,
) -> Iterator[Located]:
    described = describe(model.model, inputs, config.embed.precision)
    # The position and the confidence read more matches than are shown.
    depth = max(config.top_k, MATCHES_READ, calibration.depth if calibration else 0)
    result = place_map.search(
        described.codes,
        described.float,
        top_k=depth,
        shortlist=None if config.shortlist is None else max(config.shortlist, depth),
        exhaustive=described.codes is None,
        mode=config.mode,
        within=config.within,
        one_per_panorama=config.one_per_panorama,
    )
    similarity = _similarity(result, place_map)
    records = place_map.records(
        result.rows[result.rows >= 0], COLUMNS
    )  # of all real matches, in reading order
    lat, lon, frame = (_values(records, name, result.rows) for name in ("lat", "lon", "frame"))
    sure = (
        calibration.probability(similarity, lat, lon, frame) if calibration else np.full(len(names), np.nan)
    )
    texts = {name: _texts(records, name, result.rows) for name in ("image_id", "source_uri")}
    for q, name in enumerate(names):
        confidence = _known(sure[q])
        matches = tuple(
            Match(
                image_id=texts["image_id"][q][k],
                lat=_known(lat[q, k]),
                lon=_known(lon[q, k]),
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


def _similarity(result: SearchResult, place_map: PlaceMap) -> Floats:
    """(Q, K) cosine; where a map has codes only, of the +-1 codes; NaN for padding."""
    cosine = result.similarity.astype(np.float64)
    if place_map.descriptor_dim == 0:
        cosine = 1.0 - 2.0 * result.hamming / place_map.code_bits
    return np.where(result.rows < 0, np.nan, cosine)


def _values(records: pa.Table, name: str, rows: NDArray[np.int64]) -> Floats:
    values = np.full(rows.shape, np.nan)
    values[rows >= 0] = records.column(name).cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _texts(records: pa.Table, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    texts = np.full(rows.shape, "", dtype=object)
    texts[rows >= 0] = records.column(name).to_pylist()
    return texts


def _input(photo: Photo, name: str, preprocess: PreprocessConfig) -> torch.Tensor:
    data = photo if isinstance(photo, bytes) else storage.read_bytes(str(photo))
    try:
        return decode_to_input(data, preprocess)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _name(photo: Photo, number: int) -> str:
    return f"photo {number + 1}" if isinstance(photo, bytes) else str(photo)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
