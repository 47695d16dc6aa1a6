"""Give a map inverted lists: learn a quantizer, order every run by it, find out how many lists to probe.

Lists run through neighbouring shards (`lists` says why). The three steps are separate so that a job can spread the
second over machines; each is resumable, its files are named by what they were made from.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError
from placeray.geo import distance_m
from placeray.retrieval.build import CODE_FILE, shard_folder
from placeray.retrieval.calibration import Calibration, choose, lists_needed
from placeray.retrieval.codes import Bytes
from placeray.retrieval.inverted import InvertedLists
from placeray.retrieval.lists import is_finished, open_quantizer, save_lists, save_quantizer
from placeray.retrieval.locks import alone
from placeray.retrieval.manifest import Manifest, fingerprint
from placeray.retrieval.mapped import MappedFile
from placeray.retrieval.place_map import PlaceMap, default_shortlist
from placeray.retrieval.plan import IndexConfig
from placeray.retrieval.quantizer import CLUSTERS_TRIED, ROUNDS, SAMPLE_PER_LIST, default_lists, train
from placeray.retrieval.queries import codes_in

Run = dict[str, Any]

# Photos of one run at most: its codes take 1 GB at 512 bits.
ROWS_OF_RUN = 16_000_000
# Below this, comparing every code is fast enough, and filters and answers stay exact.
MIN_ROWS_FOR_LISTS = 5_000_000
# A query made of a photo of the map differs from it in this share of bits, as photos of another year do.
NOISE = 0.1
_RANKED_AT_ONCE = 64
_EDGE_M = 1e-6


class Queries(NamedTuple):
    """Queries to calibrate with."""

    codes: Bytes  # (Q, bits / 8) uint8
    lat: NDArray[np.floating]  # (Q,) degrees, NaN for unknown
    lon: NDArray[np.floating]
    own_rows: NDArray[np.int64]  # (Q,) the row of the map that a query was made of, -1 for none
    source: str


def wanted_lists(config: IndexConfig, manifest: Manifest) -> int:
    """How many lists a map is to have, 0 for none."""
    rows = int(manifest["counts"]["rows"])
    if not manifest["model"]["code_bits"] or not rows:
        return 0
    if config.lists is None:
        return default_lists(rows) if rows >= MIN_ROWS_FOR_LISTS else 0
    return config.lists


def learn_quantizer(root: str, manifest: Manifest, num_lists: int) -> str:
    """Learn the quantizer of a map unless it is there; returns its folder relative to the map."""
    keys = [entry["shard"]["key"] for entry in manifest["shards"]]
    path = f"ivf/{fingerprint([keys, num_lists, ROUNDS, SAMPLE_PER_LIST, CLUSTERS_TRIED])[:16]}"
    folder = storage.local_path(storage.join(root, path))
    with alone(root, path):
        if not is_finished(folder):
            with PlaceMap(root, {**manifest, "index": {"type": "flat"}}, num_threads=1) as place_map:
                rows = _evenly(place_map, num_lists * SAMPLE_PER_LIST)
                save_quantizer(folder, train(place_map.codes_of(rows), num_lists))
    return path


def plan_runs(manifest: Manifest, quantizer: str) -> list[Run]:
    """The runs of shards that a map is to have lists of: those that it has, and large ones of all other shards."""
    shards = [entry["shard"] for entry in manifest["shards"]]
    known = {run["path"]: run["shards"] for run in manifest["index"].get("runs", [])}
    kept = {
        start: start + count
        for count in set(known.values())
        for start in range(len(shards) - count + 1)
        if _run_path(quantizer, shards[start : start + count]) in known
    }
    runs, start = [], 0
    while start < len(shards):
        end, rows = start + 1, shards[start]["rows"]
        while end < len(shards) and end not in kept and rows + shards[end]["rows"] <= ROWS_OF_RUN:
            rows += shards[end]["rows"]
            end += 1
        end = kept.get(start, end)
        runs.append(_run(manifest["shards"][start:end], quantizer))
        start = end
    return runs


def _run(entries: Sequence[Mapping[str, Any]], quantizer: str) -> Run:
    shards = [entry["shard"] for entry in entries]
    path = _run_path(quantizer, shards)
    return {
        "name": path.rsplit("/", 1)[1],
        "path": path,
        "quantizer": quantizer,
        "first_row": entries[0]["first_row"],
        "rows": sum(shard["rows"] for shard in shards),
        "code_bits": shards[0]["code_bits"],
        "shards": [{"shard_id": shard["shard_id"], "rows": shard["rows"]} for shard in shards],
    }


def _run_path(quantizer: str, shards: Sequence[Mapping[str, Any]]) -> str:
    return f"{quantizer}/{fingerprint([shard['shard_id'] for shard in shards])[:16]}"


def build_lists(root: str, run: Run) -> None:
    """Order the codes of a run of `plan_runs` by its quantizer, unless that is done."""
    folder = storage.local_path(storage.join(root, run["path"]))
    with alone(root, run["path"]):
        if is_finished(folder):
            return
        code_bytes = run["code_bits"] // 8
        codes = [
            MappedFile(shard_folder(root, shard["shard_id"]) / CODE_FILE, shard["rows"] * code_bytes).bytes
            for shard in run["shards"]
        ]
        quantizer = open_quantizer(storage.local_path(storage.join(root, run["quantizer"])))
        save_lists(folder, [some.reshape(-1, code_bytes) for some in codes], quantizer)


def with_lists(
    manifest: Manifest, quantizer: str, runs: Sequence[Run], nprobe: int, calibration: dict[str, Any]
) -> Manifest:
    """The manifest of a map that has the lists of all its runs; `calibration` is Calibration.as_json and the `rows` it
    saw.
    """
    index = {
        "type": "ivf",
        "quantizer": quantizer,
        "nprobe": nprobe,
        "calibration": calibration,
        "runs": [
            {"path": run["path"], "first_row": run["first_row"], "shards": len(run["shards"])} for run in runs
        ],
        "files": [quantizer, *(run["path"] for run in runs)],
    }
    return {**manifest, "index": index}


def calibrated(manifest: Manifest, quantizer: str, runs: Sequence[Run], found: Calibration) -> Manifest:
    """`with_lists` right after a calibration."""
    rows = manifest["counts"]["rows"] - manifest["counts"].get("removed", 0)
    return with_lists(manifest, quantizer, runs, found.nprobe, {**found.as_json(), "rows": rows})


def calibrate(
    root: str, manifest: Manifest, quantizer: str, config: IndexConfig, queries: Queries | None = None, *,
    num_threads: int | None = None,
) -> Calibration:  # fmt: skip
    """Find the number of lists that reaches `config.hit_rate` of what the exhaustive shortlist answers.

    Args:
        queries: held-out queries; photos of the map with noise when None.
    """
    with PlaceMap(root, {**manifest, "index": {"type": "flat"}}, num_threads=num_threads) as place_map:
        asked = queries or queries_of_map(place_map, config.calibration_queries)
        size = default_shortlist(len(place_map))
        found = place_map.search(asked.codes, None, top_k=size + 1).rows
        found = without_own(found, asked.own_rows, size)
        right, rule = right_answers(place_map, asked, found)
        lists = InvertedLists(storage.local_path(storage.join(root, quantizer)), [])
        ranks = np.concatenate(list(_list_ranks(place_map, asked.codes, found, lists)))
    return choose(
        lists_needed(ranks, right),
        config.hit_rate,
        num_lists=len(lists),
        shortlist=size,
        queries=f"{asked.source}; {rule}",
    )


def queries_of_map(place_map: PlaceMap, count: int, seed: int = 0) -> Queries:
    """Evenly chosen photos of the map, with NOISE of their bits flipped."""
    rows = _evenly(place_map, count)
    codes = place_map.codes_of(rows)
    flips = np.random.default_rng(seed).random((len(rows), place_map.code_bits)) < NOISE
    lat, lon = _positions(place_map, rows)
    source = f"{len(rows)} photos of the map with {NOISE:.0%} of their bits flipped, themselves left out"
    return Queries(codes ^ np.packbits(flips, axis=1), lat, lon, rows, source)


def queries_of_descriptors(descriptors: str, manifest: Manifest) -> Queries:
    """The queries that embed described. Raises MapError when they are of another model than the map's."""
    found = storage.read_manifest(descriptors)
    mine = manifest["model"]
    for key in ("model_id", "preprocessing", "code_bits"):
        if found["properties"][key] != mine[key]:
            raise MapError(
                f"{storage.resolve(descriptors)} has {key} {found['properties'][key]!r} instead of {mine[key]!r}: "
                "calibrate with queries of the model of the map"
            )
    uris = [storage.join(descriptors, file["path"]) for file in found["files"]]
    table = pa.concat_tables([storage.read_table(uri, ["code", "lat", "lon"]) for uri in uris])
    codes = codes_in(table)
    if codes is None:
        raise MapError(
            f"{storage.resolve(descriptors)} holds no query with a code: nothing to calibrate with"
        )
    nobody = np.full(len(codes), -1, dtype=np.int64)
    return Queries(codes, *_lat_lon(table), nobody, f"{len(codes)} queries of {found['fingerprint'][:12]}")


def right_answers(
    place_map: PlaceMap, queries: Queries, found: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], str]:
    """Which of the rows (Q, S) found exhaustively are right, and by what rule.

    Photos within the radius of the map's positive rule where positions are known, else the nearest code alone.
    """
    rule = manifest_rule(place_map.manifest)
    known = np.isfinite(queries.lat) & np.isfinite(queries.lon)
    if rule is None or not known.any():
        right = np.zeros(found.shape, dtype=np.bool_)
        right[:, :1] = found[:, :1] >= 0
        return right, "right is the photo with the nearest code"
    lat, lon = _positions(place_map, np.maximum(found, 0).ravel())
    metres = distance_m(
        queries.lat[:, None], queries.lon[:, None], lat.reshape(found.shape), lon.reshape(found.shape)
    )
    return (found >= 0) & (metres <= rule + _EDGE_M), f"right is a photo within {rule:g} m"


def manifest_rule(manifest: Manifest) -> float | None:
    """The radius in metres within which photos of a map are right answers; None when it has another rule."""
    rule = manifest["source"]["positive_rule"]
    return float(rule["radius_m"]) if rule and rule.get("kind") == "radius" else None


def _list_ranks(
    place_map: PlaceMap, codes: Bytes, found: NDArray[np.int64], lists: InvertedLists
) -> Iterator[NDArray[np.int64]]:
    """For every row found (Q, S) how many lists are nearer to its query than its own list."""
    own = lists.quantizer.assign(place_map.codes_of(np.maximum(found, 0).ravel())).reshape(found.shape)
    for start in range(0, len(codes), _RANKED_AT_ONCE):
        some = slice(start, start + _RANKED_AT_ONCE)
        order = place_map.rank_lists(lists, codes[some])
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
        yield np.take_along_axis(rank, own[some], axis=1).astype(np.int64)


def without_own(found: NDArray[np.int64], own: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The first `size` of rows (Q, size + 1) that are not the query's own."""
    others = found != own[:, None]
    order = np.argsort(~others, axis=1, kind="stable")
    kept: NDArray[np.int64] = np.take_along_axis(found, order, axis=1)[:, :size]
    return kept


def _positions(
    place_map: PlaceMap, rows: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    return _lat_lon(place_map.records(rows, ["lat", "lon"]))


def _lat_lon(table: pa.Table) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    lat, lon = (table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("lat", "lon"))
    return lat, lon


def _evenly(place_map: PlaceMap, count: int) -> NDArray[np.int64]:
    """At most `count` rows that are not removed, evenly spread."""
    live = place_map.live
    count = min(count, place_map.num_live)
    numbers = (np.arange(count) * place_map.num_live) // max(count, 1)
    rows: NDArray[np.int64] = numbers if live is None else np.flatnonzero(live)[numbers]
    return rows
