"""Two levels of binary centroids that cut a map into lists of similar codes.

Codes are clustered coarsely, then each cluster finely, so a code meets about 9 sqrt(L) centroids instead of L when it
is put into a list. A centroid is the bitwise majority of its codes (k-medians under Hamming distance). Training and
assignment are deterministic, with numba and without.
"""

import math
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from placeray.retrieval import popcount_scan
from placeray.retrieval.codes import Bytes, as_words

ROUNDS = 8
# Codes to learn from, per centroid: more does not move hit rates (measured at 1 million codes).
SAMPLE_PER_LIST = 32
_SAMPLE_PER_CLUSTER = 256
# Clusters in which the list of a code is looked for.
CLUSTERS_TRIED = 8


class Quantizer(NamedTuple):
    """L fine centroids, grouped by the C coarse ones they were learnt under."""

    coarse: Bytes  # (C, bits / 8) uint8
    centroids: Bytes  # (L, bits / 8) uint8
    starts: NDArray[np.uint32]  # (C + 1,): coarse cluster c has centroids[starts[c] : starts[c + 1]]

    def assign(self, codes: Bytes) -> NDArray[np.int32]:
        """The list (n,) that each of codes (n, bits / 8) belongs to: the nearest one in its CLUSTERS_TRIED
        nearest clusters.

        Trying eight clusters instead of one, a query finds as much in 0.8 of the lists (10 million codes in which
        nothing clusters); the nearer of two clusters wins among equals.
        """
        clusters = _nearest_clusters(self.coarse, codes)
        lists = np.empty(len(codes), dtype=np.int32)
        distances = np.full(len(codes), 8 * codes.shape[1] + 1, dtype=np.int32)
        for cluster in clusters.T:
            for members, number in _groups(cluster):
                start, end = int(self.starts[number]), int(self.starts[number + 1])
                found = start + nearest(self.centroids[start:end], codes[members])
                different = as_words(codes[members]) ^ as_words(self.centroids[found])
                distance = np.bitwise_count(different).sum(axis=1, dtype=np.int32)
                nearer = distance < distances[members]
                lists[members[nearer]], distances[members[nearer]] = found[nearer], distance[nearer]
        return lists


def default_lists(num_rows: int) -> int:
    """16 sqrt(N): ranking the lists of a query then costs about as much as scanning those that must be probed.

    Measured at 10 million codes in which nothing clusters: 4, 16 and 32 sqrt(N) lists want 4.3, 2.2 and 1.7 % of the
    codes compared, in 3.0, 2.0 and 2.2 ms a query. Where codes cluster, fewer are enough with more lists, too.
    """
    return max(1, round(16 * math.sqrt(num_rows)))


def train(sample: Bytes, num_lists: int, seed: int = 0) -> Quantizer:
    """Learn a quantizer from codes (n, bits / 8); it has fewer lists where there are not enough different codes."""
    rng = np.random.default_rng(seed)
    num_clusters = max(1, round(math.sqrt(num_lists)))
    some = rng.permutation(len(sample))[: num_clusters * _SAMPLE_PER_CLUSTER]
    coarse = _k_medians(sample[np.sort(some)], num_clusters, rng)
    cluster = nearest(coarse, sample)
    sizes = np.bincount(cluster, minlength=len(coarse))
    wanted = _shares(sizes, num_lists)
    fine, used = [], []
    for members, number in _groups(cluster):
        fine.append(_k_medians(sample[members], int(wanted[number]), rng))
        used.append(number)
    counts = np.array([len(centroids) for centroids in fine])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    return Quantizer(coarse[used], np.concatenate(fine), starts)


def nearest(centroids: Bytes, codes: Bytes) -> NDArray[np.int32]:
    """Number (n,) of the nearest of centroids (C, bits / 8) for each of codes (n, bits / 8), the first among equals."""
    if popcount_scan.available():
        return popcount_scan.nearest(centroids, codes)
    return _nearest_by_faiss(centroids, codes, 1)[:, 0]


def _nearest_clusters(coarse: Bytes, codes: Bytes) -> NDArray[np.int32]:
    """The CLUSTERS_TRIED nearest of centroids (C, bits / 8) for each of codes (n, bits / 8), equal ones by number."""
    return _nearest_by_faiss(coarse, codes, min(CLUSTERS_TRIED, len(coarse)))


def _nearest_by_faiss(centroids: Bytes, codes: Bytes, count: int) -> NDArray[np.int32]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        _, found = faiss.knn_hamming(np.ascontiguousarray(codes), np.ascontiguousarray(centroids), count)
    finally:
        faiss.omp_set_num_threads(threads)
    nearest_ones: NDArray[np.int32] = found.astype(np.int32)
    return nearest_ones


def _k_medians(codes: Bytes, count: int, rng: np.random.Generator) -> Bytes:
    """At most `count` different centroids (k, bits / 8) of codes (n, bits / 8), n > 0."""
    different = np.unique(codes, axis=0)
    if len(different) <= count:
        return different
    centroids = different[np.sort(rng.choice(len(different), count, replace=False))]
    for _ in range(ROUNDS):
        member_of = nearest(centroids, codes)
        moved = centroids.copy()
        empty = np.ones(count, dtype=np.bool_)
        for members, number in _groups(member_of):
            moved[number] = _majority(codes[members])
            empty[number] = False
        # A centroid that nobody is nearest to starts again at a random code.
        moved[empty] = codes[rng.integers(0, len(codes), int(empty.sum()))]
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _majority(codes: Bytes) -> Bytes:
    """The code (bits / 8,) whose bits at least half of codes (n, bits / 8) have set."""
    ones = np.unpackbits(codes, axis=1).sum(axis=0, dtype=np.int32)
    return np.packbits(2 * ones >= len(codes))


def _groups(numbers: NDArray[np.int32]) -> list[tuple[NDArray[np.int64], int]]:
    """(positions, number) for every number that occurs in (n,), ascending."""
    order = np.argsort(numbers, kind="stable")
    different, firsts = np.unique(numbers[order], return_index=True)
    return list(zip(np.split(order, firsts[1:]), different.tolist(), strict=True))


def _shares(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` centroids shared out by the sizes (C,) of clusters, at least one each."""
    exact = sizes * (total / max(int(sizes.sum()), 1))
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    missing = max(total - int(shares.sum()), 0)
    shares[np.argsort(-(exact - np.floor(exact)), kind="stable")[:missing]] += 1
    return shares
