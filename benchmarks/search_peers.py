"""Other ways to search, beside ours, at sizes that they build in minutes; part of `search.py`.

usearch and qdrant-edge are not among the requirements of placeray: `pip install usearch qdrant-edge-py` to have them
here, otherwise their rows say so.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawn_map
import faiss
import measure
import numpy as np

from placeray.retrieval.place_map import PlaceMap
from placeray.retrieval.quantize import quantize

NUM_QUERIES, USEARCH_PHOTOS, QDRANT_PHOTOS, QDRANT_DIM = 64, 200_000, 60_000, 1024
Run = Callable[[], object]


def run(base: np.ndarray, rounds: int) -> dict[str, Any]:
    """Milliseconds per query of each peer and of ours on the same rows."""
    return {
        "faiss float exhaustive": float_exhaustive(base, rounds),
        "usearch b1": usearch(rounds) if importlib.util.find_spec("usearch") else "not installed",
        "qdrant-edge": qdrant(rounds) if importlib.util.find_spec("qdrant_edge") else "not installed",
    }


def float_exhaustive(base: np.ndarray, rounds: int) -> dict[str, Any]:
    """Every float descriptor, at the rows of the base; the time grows with the rows."""
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    queries = base[:NUM_QUERIES]
    seconds = measure.alternate({"batch": lambda: index.search(queries, 100)}, rounds)["batch"]
    ms = 1e3 * seconds / NUM_QUERIES
    return {
        "photos": len(base),
        "ms_per_query": round(ms, 2),
        "at_2.8_million": round(ms * 2.8e6 / len(base), 1),
    }


def usearch(rounds: int) -> dict[str, Any]:
    """Its binary index (HNSW) and its exact search."""
    from usearch.index import Index, MetricKind, ScalarKind  # type: ignore[import-not-found, unused-ignore]
    from usearch.index import search as exact_search

    city = drawn_map.draw("ou", USEARCH_PHOTOS, NUM_QUERIES)
    began = time.perf_counter()
    index = Index(
        ndim=drawn_map.CODE_BITS, metric=MetricKind.Hamming, dtype=ScalarKind.B1, expansion_search=512
    )
    index.add(np.arange(len(city.codes)), city.codes, threads=1)
    built = time.perf_counter() - began
    found = index.search(city.queries, 100, threads=1)
    hit = float((found.keys.astype(int) // 10 == city.asked[:, None]).any(axis=1).mean())
    with open_map(city) as place_map:
        seconds = measure.alternate(
            {
                "usearch hnsw": lambda: index.search(city.queries, 100, threads=1),
                "usearch exact": lambda: exact_search(
                    city.codes, city.queries, 100, MetricKind.Hamming, exact=True, threads=1
                ),
                "ours exact": lambda: place_map.search(city.queries, None, top_k=100),
            },
            rounds,
        )
    return {"photos": len(city.codes), "build_s": round(built, 1), "hit_at_100": hit, **per_query(seconds)}


def qdrant(rounds: int) -> dict[str, Any]:
    """Its binary quantisation of the float vectors with rescoring, against our two stages on given codes."""
    import qdrant_edge as edge  # type: ignore[import-not-found, unused-ignore]

    rng = np.random.default_rng(2)
    centres = np.repeat(rng.standard_normal((QDRANT_PHOTOS // 10, QDRANT_DIM), np.float32), 10, axis=0)
    floats = centres + 0.5 * rng.standard_normal(centres.shape, np.float32)
    floats /= np.linalg.norm(floats, axis=1, keepdims=True)
    asked = rng.choice(QDRANT_PHOTOS, NUM_QUERIES, replace=False)
    queries = centres[asked] + 0.8 * rng.standard_normal((NUM_QUERIES, QDRANT_DIM), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    project = rng.standard_normal((QDRANT_DIM, drawn_map.CODE_BITS), np.float32)
    codes, query_codes = (
        np.packbits(floats @ project >= 0, axis=1),
        np.packbits(queries @ project >= 0, axis=1),
    )
    with tempfile.TemporaryDirectory(prefix="placeray-qdrant-") as name:
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=QDRANT_DIM, distance=edge.Distance.Dot, on_disk=False),
            quantization_config=edge.BinaryQuantizationConfig(always_ram=True),
        )
        began = time.perf_counter()
        shard = edge.EdgeShard.create(name, config)
        for start in range(0, QDRANT_PHOTOS, 1000):
            points = [edge.Point(row, floats[row].tolist(), {}) for row in range(start, start + 1000)]
            shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        built = time.perf_counter() - began
        lists = [query.tolist() for query in queries]
        wanted = edge.SearchParams(
            hnsw_ef=128, quantization=edge.QuantizationSearchParams(rescore=True, oversampling=10.0)
        )

        def search_all() -> list[list[Any]]:
            return [
                shard.search(edge.SearchRequest(query=edge.Query.Nearest(query), limit=10, params=wanted))
                for query in lists
            ]

        right = np.mean(
            [found[0].id // 10 == row // 10 for found, row in zip(search_all(), asked, strict=True)]
        )
        city = drawn_map.City(
            codes, np.full(QDRANT_PHOTOS, 47.0), np.full(QDRANT_PHOTOS, 8.0), query_codes, asked // 10
        )
        with open_map(city, floats) as place_map:
            mine = (
                place_map.search(query_codes, queries, top_k=10, shortlist=100).rows[:, 0] // 10
                == asked // 10
            )

            def ours() -> None:
                for q in range(NUM_QUERIES):
                    place_map.search(query_codes[q : q + 1], queries[q : q + 1], top_k=10, shortlist=100)

            seconds = measure.alternate({"qdrant-edge": search_all, "ours one by one": ours}, rounds)
    share = {"qdrant-edge": float(right), "ours": float(mine.mean())}
    return {
        "photos": QDRANT_PHOTOS,
        "build_s": round(built, 1),
        "right_place_first": share,
        **per_query(seconds),
    }


def open_map(city: drawn_map.City, floats: np.ndarray | None = None) -> PlaceMap:
    """A map in a temporary folder, which the system keeps as long as the map is open."""
    with tempfile.TemporaryDirectory(prefix="placeray-peers-") as name:
        store = None if floats is None else drawn_map.Store(*quantize(floats))
        drawn_map.write_map(Path(name) / "map", city, store)
        return PlaceMap.open(str(Path(name) / "map"), num_threads=1)


def per_query(seconds: dict[str, float]) -> dict[str, Any]:
    return {"ms_per_query": {name: round(1e3 * value / NUM_QUERIES, 4) for name, value in seconds.items()}}
