"""Many queries at once: a table of described photos in, a table of answers out, without Ray and torch.

Shape letters: `Q` queries, `K` matches read of each.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from placeray.contracts import table_schema, validate_table
from placeray.errors import DataError, MapError
from placeray.retrieval.answers import SearchResult
from placeray.retrieval.filters import Circle, Filter
from placeray.retrieval.matched import MATCHES_READ, Confidence, cosines, known, values_at
from placeray.retrieval.place_map import Mode, PlaceMap, default_shortlist
from placeray.retrieval.position import PositionConfig, estimate_position
from placeray.retrieval.queries import codes_in, descriptors_in

CONTRACT = "answers/v1"
# What is read of a match; `frame` only for the confidence.
_RECORD = ("image_id", "lat", "lon", "heading_deg", "captured", "frame", "source_uri")


class SearchConfig(PositionConfig):
    """How many described photos are searched on a map."""

    top_k: int = Field(default=10, ge=1, description="answers to each query")
    shortlist: int | None = Field(
        default=None,
        ge=1,
        description="candidates stage 1 hands to stage 2; null goes by the size of the map",
    )
    mode: Mode = Field(default="auto", description="stage 1: every code (exact), near lists (ivf), or auto")
    nprobe: int | None = Field(
        default=None, ge=1, description="lists of ivf; null takes what the map was calibrated to"
    )
    filter: Filter = Field(default=Filter(), description="which map photos may answer; always exact")
    near_m: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="only map photos this near to the query's own recorded position (a GPS prior), in metres",
    )
    one_per_panorama: bool = Field(default=False, description="only the best photo of each panorama")
    exhaustive: bool = Field(default=False, description="compare every float descriptor, without codes")
    batch_size: int = Field(default=256, ge=1, description="queries per search call")

    @model_validator(mode="after")
    def _shortlist_covers_top_k(self) -> Self:
        if self.shortlist is not None and self.shortlist < self.top_k:
            raise ValueError(
                f"shortlist={self.shortlist} is smaller than top_k={self.top_k}: "
                "stage 2 can only return what stage 1 found"
            )
        return self

    @model_validator(mode="after")
    def _conditions_fit(self) -> Self:
        if self.near_m is not None and self.filter.area is not None:
            raise ValueError("near_m and filter.area both say where answers may lie: give one")
        if self.is_narrowed and self.mode == "ivf":
            raise ValueError("filter and near_m search exactly, not with mode: ivf: leave it out")
        return self

    @property
    def is_narrowed(self) -> bool:
        """Whether not every photo of the map may answer."""
        return self.near_m is not None or not self.filter.is_empty


def answer_queries(
    queries: pa.Table, place_map: PlaceMap, config: SearchConfig, calibration: Confidence | None = None
) -> pa.Table:
    """The answers (answers/v1) to described photos (descriptors/v1), one row for each, in their order.

    Args:
        place_map: the map; it must come from the model that described the queries (`check_model`).
        calibration: from the evaluation of this map; without it confidence stays null.

    Raises:
        ContractError: `queries` is not descriptors/v1.
        DataError: some queries have a code or descriptor and others have none.
        MapError: the queries do not fit the map, or the map lacks what was asked for.
    """
    validate_table(queries, "descriptors/v1")
    starts = range(0, queries.num_rows, config.batch_size)
    pieces = [_answer(queries.slice(at, config.batch_size), place_map, config, calibration) for at in starts]
    return pa.concat_tables(pieces) if pieces else table_schema(CONTRACT).empty_table()


def without_position(queries: pa.Table) -> int:
    """Queries for which `near_m` cannot narrow the search: they are compared with the whole map."""
    return int(np.isnan(_places(queries)).any(axis=1).sum())


def _answer(
    queries: pa.Table, place_map: PlaceMap, config: SearchConfig, calibration: Confidence | None
) -> pa.Table:
    codes, descriptors = codes_in(queries), descriptors_in(queries)
    result = place_map.search(
        codes,
        descriptors,
        top_k=matches_to_read(place_map, config.top_k, config.shortlist, calibration),
        shortlist=config.shortlist,
        exhaustive=config.exhaustive or place_map.code_bits == 0,
        mode=config.mode,
        nprobe=config.nprobe,
        within=_conditions(queries, config),
        one_per_panorama=config.one_per_panorama,
    )
    similarity = _similarity(result, place_map, descriptors is not None)
    records = place_map.records(result.rows[result.rows >= 0], _RECORD)
    lat, lon, frame = (values_at(records, name, result.rows) for name in ("lat", "lon", "frame"))
    sure = np.full(len(result.rows), np.nan)
    if calibration is not None:
        sure = calibration.probability(similarity, lat, lon, frame)
    spots = [estimate_position(lat[q], lon[q], similarity[q], config) for q in range(len(lat))]
    schema = table_schema(CONTRACT)
    columns: dict[str, Any] = {
        "answers": _answers(result, similarity, records, config.top_k, schema.field("answers").type),
        "estimated_lat": [spot and spot.lat for spot in spots],
        "estimated_lon": [spot and spot.lon for spot in spots],
        "spread_m": [spot and spot.spread_m for spot in spots],
        "position_matches": [spot and spot.matches for spot in spots],
        "confidence": [known(value) for value in sure],
    }
    columns |= {name: queries[name].combine_chunks() for name in ("image_id", "source_uri")}
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, schema.field(name).type)
        for name, values in ((name, columns[name]) for name in schema.names)
    ]
    return pa.table(arrays, schema=schema)


def matches_to_read(
    place_map: PlaceMap, top_k: int, shortlist: int | None, calibration: Confidence | None
) -> int:
    """Matches read of each query: the position and the confidence look at more than the `top_k` that are returned.

    A shortlist stays what was asked for: reading more must not change the answers.

    Raises:
        MapError: the shortlist has fewer than the calibration looks at.
    """
    size = shortlist or max(top_k, default_shortlist(len(place_map)))
    wanted = calibration.depth if calibration else 0
    if wanted > size:
        raise MapError(
            f"the calibration looks at {wanted} matches, shortlist={size} has fewer: make it larger"
        )
    return max(top_k, min(MATCHES_READ, size), wanted)


def _conditions(queries: pa.Table, config: SearchConfig) -> Filter | Sequence[Filter] | None:
    if config.near_m is None:
        return None if config.filter.is_empty else config.filter
    places = _places(queries)
    wrong = np.flatnonzero((np.abs(places) > (90.0, 180.0)).any(axis=1))
    if len(wrong):
        name, (lat, lon) = queries["image_id"][int(wrong[0])].as_py(), places[wrong[0]].tolist()
        raise DataError(f"query {name} was recorded at ({lat}, {lon}), which is no (lat, lon) in degrees")
    return [
        config.filter
        if np.isnan(lat) or np.isnan(lon)
        else config.filter.model_copy(update={"area": Circle(lat=lat, lon=lon, radius_m=config.near_m)})
        for lat, lon in places.tolist()
    ]


def _places(queries: pa.Table) -> NDArray[np.float64]:
    """(Q, 2) latitude and longitude, NaN for unknown."""
    columns = [queries[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("lat", "lon")]
    return np.stack(columns, axis=1)


def _similarity(result: SearchResult, place_map: PlaceMap, has_descriptors: bool) -> NDArray[np.float64]:
    """(Q, K) cosine; of the +-1 codes where the queries have no floats, whatever the map has."""
    if has_descriptors:
        return cosines(result, place_map)
    of_codes = 1.0 - 2.0 * result.hamming / place_map.code_bits
    return np.where(result.rows < 0, np.nan, of_codes)


def _answers(
    result: SearchResult, similarity: NDArray[np.float64], records: pa.Table, top_k: int, kind: pa.DataType
) -> pa.ListArray:
    """The first `top_k` matches of each query as structs; `records` are those of all K, in reading order."""
    real = result.rows >= 0
    shown = real.copy()
    shown[:, top_k:] = False
    chosen = records.take(pa.array(np.flatnonzero(shown[real])))
    bits = result.hamming[shown]
    made = {
        "hamming": pa.array(bits, pa.int32(), mask=bits < 0),
        "similarity": pa.array(similarity[shown].astype(np.float32)),
    }
    fields = list(kind.value_type)
    inner = [made.get(field.name) for field in fields]
    inner = [
        chosen[field.name].combine_chunks() if values is None else values
        for field, values in zip(fields, inner, strict=True)
    ]
    offsets = np.concatenate([[0], np.cumsum(shown.sum(axis=1))]).astype(np.int32)
    structs = pa.StructArray.from_arrays(inner, fields=fields)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=kind)
