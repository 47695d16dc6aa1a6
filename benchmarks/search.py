"""The exact two-stage search against the published loop, same queries, same shortlist, one core each.

    python benchmarks/search.py [--photos 500000]

A1  the published loop, one query at a time: faiss flat Hamming, then float32 gather, L2 norm, argsort
A2  the same as it is written: one faiss call for all queries, then the numpy loop
`exact_batch_vs_reference` is A2 and `exact_single_vs_reference` is A1, each over our time for the whole batch.
The map is built by the index code from drawn descriptors: streets of places, ten photos of each (`draw_city`).
Takes about two minutes and 4 GB of memory and disk.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import measure
import numpy as np
import pyarrow as pa

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.retrieval.build import build_shard
from placeray.retrieval.manifest import compose, publish
from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.plan import IndexConfig, plan_map

CODE_BITS, DIM, SHORTLIST, NUM_QUERIES, ROUNDS = 512, 1024, 100, 64, 7
PHOTOS_PER_PLACE, PLACES_PER_STREET, PHOTOS_PER_FILE = 10, 200, 50_000
# For this size. The larger the map, the more of the time is stage 1, where the gain is: at 2.8 million photos of 4096
# floats the first two are meant to reach 2.2 and 3.5.
TARGETS = {
    "exact_batch_vs_reference": ">= 1.5",
    "exact_single_vs_reference": ">= 2.0",
    "rerank_warm_vs_reference": ">= 2.0",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=500_000)
    num_photos = parser.parse_args().photos
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="placeray-search-") as folder:
        run(num_photos, Path(folder))


def run(num_photos: int, folder: Path) -> None:
    places = np.arange(num_photos) // PHOTOS_PER_PLACE
    rng = np.random.default_rng(0)
    asked = rng.choice(num_photos, NUM_QUERIES, replace=False)
    codes, floats = np.empty((num_photos, CODE_BITS // 8), np.uint8), np.empty((num_photos, DIM), np.float32)
    row = 0
    for some_codes, some_floats in draw_city(rng, places, flip=(0.05, 0.15), noise=1.0):
        codes[row : row + len(some_codes)], floats[row : row + len(some_codes)] = some_codes, some_floats
        row += len(some_codes)
    query_codes, queries = next(draw_city(np.random.default_rng(0), places, (0.10, 0.28), 1.5, rows=asked))
    build_s = build(folder, codes, floats)
    reference = faiss.IndexBinaryFlat(CODE_BITS)
    reference.add(codes)
    opened = time.perf_counter()
    with PlaceMap.open(str(folder / "map"), num_threads=1) as place_map:
        open_s = time.perf_counter() - opened
        order = [int(name) for name in place_map.rows(["image_id"])["image_id"].to_pylist()]
        assert order == list(range(num_photos)), (
            "rows of the map and of the reference must have the same numbers"
        )
        compare(reference, floats, place_map, query_codes, queries, asked, build_s, open_s)


def compare(
    reference: faiss.IndexBinaryFlat, floats: np.ndarray, place_map: PlaceMap, codes: np.ndarray,
    queries: np.ndarray, asked: np.ndarray, build_s: float, open_s: float,
) -> None:  # fmt: skip
    """Check that both find the same, then time them in turn."""
    distances, candidates = reference.search(codes, SHORTLIST)
    stage_one = place_map.search(codes, None, top_k=SHORTLIST)
    assert (stage_one.rows == candidates).all(), "stage 1 differs from faiss"
    assert (stage_one.hamming == distances).all(), "stage 1 differs from faiss"
    expected = np.array(
        [rerank_as_published(floats, queries[q], rows)[0] for q, rows in enumerate(candidates)]
    )
    found = place_map.search(codes, queries, top_k=SHORTLIST, shortlist=SHORTLIST)

    def one_by_one_as_published() -> None:
        for q in range(len(codes)):
            _, rows = reference.search(codes[q : q + 1], SHORTLIST)
            rerank_as_published(floats, queries[q], rows[0])

    def batch_as_published() -> None:
        _, rows = reference.search(codes, SHORTLIST)
        for q in range(len(codes)):
            rerank_as_published(floats, queries[q], rows[q])

    def one_by_one() -> None:
        for q in range(len(codes)):
            place_map.search(codes[q : q + 1], queries[q : q + 1], top_k=SHORTLIST, shortlist=SHORTLIST)

    seconds = measure.alternate(
        {
            "A1": one_by_one_as_published,
            "A2": batch_as_published,
            "one by one": one_by_one,
            "batch": lambda: place_map.search(codes, queries, top_k=SHORTLIST, shortlist=SHORTLIST),
            "faiss stage 1": lambda: reference.search(codes, SHORTLIST),
            "stage 1": lambda: place_map.search(codes, None, top_k=SHORTLIST),
            "re-rank as published": lambda: [
                rerank_as_published(floats, queries[q], rows) for q, rows in enumerate(candidates)
            ],
            "all float": lambda: place_map.search(None, queries, top_k=SHORTLIST, exhaustive=True),
        },
        ROUNDS,
    )
    rerank_s = stage_two_seconds(place_map, codes, queries)
    right = place_of(found.rows[:, 0]) == place_of(asked)
    measure.finish(
        "search",
        {
            "exact_batch_vs_reference": seconds["A2"] / seconds["batch"],
            "exact_single_vs_reference": seconds["A1"] / seconds["batch"],
            "one_by_one_vs_reference": seconds["A1"] / seconds["one by one"],
            "stage1_batch_vs_faiss": seconds["faiss stage 1"] / seconds["stage 1"],
            "rerank_warm_vs_reference": seconds["re-rank as published"] / rerank_s,
        },
        TARGETS,
        photos=len(place_map),
        code_bits=CODE_BITS,
        descriptor_dim=DIM,
        threads=1,
        ms_per_query={name: round(1e3 * s / NUM_QUERIES, 4) for name, s in seconds.items()},
        rerank_ms_per_query=round(1e3 * rerank_s / NUM_QUERIES, 4),
        same_first_answer=float((found.rows[:, 0] == expected).mean()),
        right_place_first=float(right.mean()),
        build_s=round(build_s, 1),
        open_ms=round(1e3 * open_s, 1),
    )


def stage_two_seconds(place_map: PlaceMap, codes: np.ndarray, queries: np.ndarray) -> float:
    """Median seconds of gather and re-rank, all data in memory."""
    timings = [
        place_map.search(codes, queries, top_k=SHORTLIST, shortlist=SHORTLIST).timings for _ in range(ROUNDS)
    ]
    return float(np.median([timing["gather"] + timing["rerank"] for timing in timings])) / 1e3


def rerank_as_published(floats: np.ndarray, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """eval.py of the published code: L2 distance to each candidate, argsort."""
    return rows[np.argsort(np.linalg.norm(query - floats[rows], axis=1))]


def place_of(rows: np.ndarray) -> np.ndarray:
    """Place of each photo."""
    return rows // PHOTOS_PER_PLACE


def draw_city(
    rng: np.random.Generator,
    places: np.ndarray,
    flip: tuple[float, float],
    noise: float,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes (n, bits / 8) and unit floats (n, D) of photos, a file's worth at a time.

    Places follow each other along streets and resemble their neighbours; a photo flips a share of its place's bits
    and adds noise to its place's floats. The places depend on their number alone, not on `rng`.
    """
    wanted = np.arange(len(places)) if rows is None else rows
    for start in range(0, len(wanted), PHOTOS_PER_FILE):
        mine = places[wanted[start : start + PHOTOS_PER_FILE]]
        numbers, inverse = np.unique(mine, return_inverse=True)
        centre = street_centres(numbers)
        shares = rng.uniform(*flip, (len(mine), 1))
        bits = (centre[:, :CODE_BITS] >= 0)[inverse] ^ (
            rng.random((len(mine), CODE_BITS), np.float32) < shares
        )
        unit = centre[:, CODE_BITS:][inverse] + noise * rng.standard_normal((len(mine), DIM), np.float32)
        yield np.packbits(bits, axis=1), unit / np.linalg.norm(unit, axis=1, keepdims=True)


def street_centres(places: np.ndarray) -> np.ndarray:
    """(n, bits + D) float32: an AR(1) walk along each street, the same whenever a place is asked for."""
    centres = np.empty((len(places), CODE_BITS + DIM), np.float32)
    for street in np.unique(places // PLACES_PER_STREET):
        walk = np.random.default_rng(street).standard_normal((PLACES_PER_STREET, CODE_BITS + DIM), np.float32)
        for step in range(1, PLACES_PER_STREET):
            walk[step] = 0.8 * walk[step - 1] + 0.6 * walk[step]
        here = places // PLACES_PER_STREET == street
        centres[here] = walk[places[here] % PLACES_PER_STREET]
    return centres


def build(folder: Path, codes: np.ndarray, floats: np.ndarray) -> float:
    """Write descriptors and build the map; returns the seconds of the latter."""
    source, files = folder / "descriptors", []
    for start in range(0, len(codes), PHOTOS_PER_FILE):
        name = f"{start:09d}.parquet"
        storage.write_table(
            str(source / name), table_of(codes, floats, start), row_group_size=4096, compression="none"
        )
        digest = hashlib.sha256((source / name).read_bytes()).hexdigest()
        rows = min(PHOTOS_PER_FILE, len(codes) - start)
        files.append({"path": name, "rows": rows, "bytes": (source / name).stat().st_size, "sha256": digest})
        measure.say(f"drew {start + rows} of {len(codes)} photos")
    properties = {"model_id": "drawn", "preprocessing": "none", "code_bits": CODE_BITS, "descriptor_dim": DIM}
    manifest = table_manifest("descriptors/v1", files, made_by={}, properties=properties)
    storage.commit_manifest(str(source), manifest)
    began = time.perf_counter()
    plan = plan_map(str(source), IndexConfig(rows_per_shard=200_000))
    shards = []
    for part in plan["shards"]:
        shards.append(build_shard(part, str(source), str(folder / "map")))
        measure.say(f"built shard {len(shards)} of {len(plan['shards'])}")
    publish(str(folder / "map"), compose(plan, shards))
    return time.perf_counter() - began


def table_of(codes: np.ndarray, floats: np.ndarray, start: int) -> pa.Table:
    """descriptors/v1 of one file; no positions, and ids that sort like rows, so that rows keep their numbers."""
    some = slice(start, start + PHOTOS_PER_FILE)
    count = len(codes[some])
    schema = table_schema("descriptors/v1", {"descriptor": DIM})
    names = pa.array([f"{row:09d}" for row in range(start, start + count)])
    vectors = {
        "image_id": names,
        "source_uri": names,
        "code": pa.array([code.tobytes() for code in codes[some]], pa.binary()),
        "descriptor": pa.FixedSizeListArray.from_arrays(
            pa.array(floats[some].astype(np.float16).reshape(-1)), DIM
        ),
    }
    return pa.table([vectors.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)


if __name__ == "__main__":
    main()
