"""An open map: search it, read who its photos are, check that queries come from its model.

Needs neither Ray nor torch. A map that is open keeps its version: files of a published shard never change.
"""

import functools
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval import gpu_scan
from placeray.retrieval.answers import SearchResult, first_of_each
from placeray.retrieval.build import rows_schema
from placeray.retrieval.cells import NO_POSITION
from placeray.retrieval.codes import Bytes, hamming
from placeray.retrieval.copies import local_copy
from placeray.retrieval.damage import Damaged, joined_masks, open_shards
from placeray.retrieval.exhaustive import search_exhaustive
from placeray.retrieval.filters import Filter, cover_area, select
from placeray.retrieval.first_stage import (
    CodeRange,
    Engine,
    is_for_pieces,
    make_pool,
    search_codes,
    search_pieces,
)
from placeray.retrieval.float_store import FloatStores
from placeray.retrieval.gpu_scan import GpuCodes
from placeray.retrieval.inverted import InvertedLists
from placeray.retrieval.lists import verify as verify_lists
from placeray.retrieval.manifest import (
    Manifest,
    check_model,
    current_version,
    read_map_manifest,
    versions,
)
from placeray.retrieval.merge import Keys, distances_of, rows_of
from placeray.retrieval.near import pieces_near
from placeray.retrieval.queries import checked_queries
from placeray.retrieval.rerank import rerank
from placeray.retrieval.row_ranges import RowRanges

Floats = NDArray[np.float32]


Mode = Literal["auto", "exact", "ivf"]
_NO_CELLS = np.array([NO_POSITION, 0], dtype=np.uint64)


class _Stage(NamedTuple):
    """How stage 1 of one call searches."""

    size: int
    lists: InvertedLists | None  # None: exact
    nprobe: int | None
    within: Filter | Sequence[Filter] | None
    engine: Engine


def _is_filtered(within: Filter | Sequence[Filter] | None) -> bool:
    """Whether some photos may not answer. Raises MapError for what is no filter."""
    if within is None:
        return False
    for wanted in within if isinstance(within, Sequence) else [within]:
        if not isinstance(wanted, Filter):
            raise MapError(
                f"within has a {type(wanted).__name__} where a Filter is expected: Filter() is one that lets all answer"
            )
    return isinstance(within, Sequence) or not within.is_empty


def _alike(within: Filter | Sequence[Filter], num_queries: int) -> list[tuple[Filter, list[int]]]:
    """The different filters of some queries, each with the queries it is for."""
    if isinstance(within, Filter):
        return [(within, list(range(num_queries)))]
    if len(within) != num_queries:
        raise MapError(f"{len(within)} filters for {num_queries} queries: give one, or one for each")
    alike: dict[Filter, list[int]] = {}
    for q, wanted in enumerate(within):
        alike.setdefault(wanted, []).append(q)
    return list(alike.items())


def _was_pruned(uri: str, root: str, name: str, asked: str | None) -> bool:
    """Whether a version went between two steps of opening it and opening again helps. Anything else is damage.

    Of the map itself the next version is there; the copy of a machine, where another process fetched newer versions,
    is filled again.
    """
    if asked is None and current_version(uri) != name:
        return True
    return root != uri and name not in versions(root)


def default_shortlist(num_rows: int) -> int:
    """Candidates for stage 2: what the cut loses grows with the map, so the shortlist does too (measured)."""
    if num_rows <= 1_000_000:
        return 100
    return 400 if num_rows <= 50_000_000 else 1000


class PlaceMap:
    """One version of a map, opened for reading."""

    def __init__(
        self,
        root: str,
        manifest: Manifest,
        *,
        num_threads: int | None = None,
        damaged: Damaged = "refuse",
        verify: bool = False,
    ) -> None:
        """Open the shards of a manifest; `open` is the usual way in, and says what can be asked for."""
        self.root, self.manifest = root, manifest
        self._where = f"the map {storage.resolve(root)}"
        self._closed = False
        # What was left out because it is damaged, a sentence each.
        opened, self.damaged = open_shards(root, manifest["shards"], damaged, verify=verify)
        self._shards = [item.shard for item in opened]
        self._first_rows = [item.first_row for item in opened]
        self._row_ranges = RowRanges(self._first_rows, [len(shard) for shard in self._shards])
        self._floats = FloatStores(
            [shard.floats for shard in self._shards if shard.floats is not None],
            self._first_rows if self.descriptor_dim else [],
            self.descriptor_dim,
        )
        # (N,) rows that can be returned, None for all; removed photos and left-out shards keep their numbers.
        self.live = joined_masks(opened, len(self))
        self._ranges = [
            CodeRange(item.shard.codes, item.first_row, item.live)
            for item in opened
            if item.shard.codes is not None
        ]
        self._lists = self._open_lists(damaged, verify)
        self.num_threads = num_threads or os.cpu_count() or 1
        self._pool: ThreadPoolExecutor = make_pool(self.num_threads)
        self._gpu: GpuCodes | None = None  # of the first search that wants it
        self._no_gpu = "" if gpu_scan.available() else "faiss sees no GPU"  # why there is none
        self._gpu_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        version: str | None = None,
        num_threads: int | None = None,
        damaged: Damaged = "refuse",
        verify: bool = False,
    ) -> "PlaceMap":
        """Open a map folder at its current or a named version; of one in an object store, this machine's copy.

        Args:
            num_threads: threads of one search; all cores when None.
            damaged:     whether damaged shards refuse the map, or are left out and named in `damaged`; the
                others keep their row numbers. Damaged inverted lists are left out as a whole.
            verify:      also read all files and compare their checksums.

        Raises:
            MapError: no map, a damaged one, or one of a newer format; the message names the file. A damaged
            manifest is refused in any case.
            StorageError: the object store fails.
        """
        remote = storage.is_remote(storage.resolve(uri))
        # A copy that was filled anew while it was opened shows no trace of it, so it is opened twice.
        settled = not remote
        while True:
            name = version or current_version(uri)
            root = local_copy(uri, name) if remote else uri
            try:
                manifest = read_map_manifest(root, name)
                found = cls(root, manifest, num_threads=num_threads, damaged=damaged, verify=verify)
            except MapError:
                if settled and not _was_pruned(uri, root, name, version):
                    raise
                settled = True
                continue
            if not found.damaged or (settled and not _was_pruned(uri, root, name, version)):
                return found
            found.close()  # what looked damaged may have been pruned
            settled = True

    def __len__(self) -> int:
        """Rows of the map, those of removed photos and of left-out shards too."""
        return int(self.manifest["counts"]["rows"])

    @property
    def num_live(self) -> int:
        """Photos that a search can return."""
        return len(self) if self.live is None else int(self.live.sum())

    def __enter__(self) -> "PlaceMap":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the search threads and leave the GPU."""
        self._closed = True
        self._pool.shutdown()
        self._gpu, self._no_gpu = None, "the map is closed"

    @property
    def version(self) -> str:
        """Such as v0001."""
        return str(self.manifest["version"])

    @property
    def code_bits(self) -> int:
        """Length of the binary codes, 0 for a model without a hash branch."""
        return int(self.manifest["model"]["code_bits"])

    @property
    def descriptor_dim(self) -> int:
        """Length of the float descriptors, 0 for a model without a float branch."""
        return int(self.manifest["model"]["descriptor_dim"])

    def check_model(self, model_id: str, code_bits: int, descriptor_dim: int, preprocessing: str) -> None:
        """Raises MapError when queries described so cannot be compared with this map."""
        check_model(self.manifest, self._where, model_id, code_bits, descriptor_dim, preprocessing)

    def verify(self) -> None:
        """Compare the checksums of all files. Raises MapError naming the first that has changed."""
        for shard in self._shards:
            shard.verify()
        if self._lists is not None:
            self._verify_lists()

    def search(
        self,
        codes: Bytes | None,
        descriptors: Floats | None,
        *,
        top_k: int,
        shortlist: int | None = None,
        exhaustive: bool = False,
        mode: Mode = "auto",
        nprobe: int | None = None,
        within: Filter | Sequence[Filter] | None = None,
        one_per_panorama: bool = False,
        engine: Engine = "auto",
    ) -> SearchResult:
        """The `top_k` photos that resemble each query most.

        Two stages when both codes and descriptors are given; by codes alone, in Hamming order, without
        descriptors; by comparing every descriptor with `exhaustive`. Equal scores are ordered by what decided
        before, in the end by row; the answer depends neither on the number of shards or threads nor on the
        engine.

        Args:
            codes:       (Q, code_bits / 8) uint8; may be None for an exhaustive search.
            descriptors: (Q, D) unit-length floats, or None.
            shortlist:   candidates of stage 1 that stage 2 orders; by the size of the map when None.
            mode:        how stage 1 searches: exact compares every code, ivf the lists nearest to the query, auto
                is ivf where the map has lists and no filter is given.
            nprobe:      lists of ivf; what the map was calibrated to when None.
            within:      which photos may answer, for all queries or one for each; always exact.
            one_per_panorama: answer with the best photo of each panorama only.
            engine:      how an exact stage 1 scans; all give the same answer. auto takes the GPU that faiss sees for
                many queries against all codes of a large map, where they fit its memory.

        Raises:
            MapError: the queries do not fit the map or what was asked for needs a branch that its model
            lacks.
        """
        began = time.perf_counter()
        self._check_asked(mode, engine, top_k=top_k, shortlist=shortlist, nprobe=nprobe)
        codes, descriptors = checked_queries(
            codes,
            descriptors,
            exhaustive=exhaustive,
            code_bits=self.code_bits,
            descriptor_dim=self.descriptor_dim,
            where=self._where,
        )
        filtered = _is_filtered(within)
        if exhaustive:
            assert descriptors is not None
            wanted = max(top_k, self._shortlist(top_k, shortlist)) if one_per_panorama else top_k
            result = self._search_exhaustive(codes, descriptors, wanted, within if filtered else None)
        else:
            assert codes is not None
            size = top_k
            if descriptors is not None or one_per_panorama:
                size = self._shortlist(top_k, shortlist)
            stage = _Stage(
                size, self._lists_for(mode, filtered), nprobe, within if filtered else None, engine
            )
            result = self._search_staged(codes, descriptors, size if one_per_panorama else top_k, stage)
        if one_per_panorama:
            result = first_of_each(
                result, lambda rows: self.records(rows, ["panorama_id"])["panorama_id"], top_k
            )
        result.timings["total"] = (time.perf_counter() - began) * 1e3
        return result

    def _check_asked(self, mode: Mode, engine: Engine, **counts: int | None) -> None:
        """Raises MapError where something was asked for that no search can do."""
        if self._closed:
            raise MapError(f"{self._where} is closed: open it again to search it")
        for name, count in counts.items():
            if count is not None and not (isinstance(count, Integral) and 1 <= count < 2**31):
                raise MapError(f"{name}={count}: a whole number from 1 to 2**31 - 1 is wanted")
        for name, value, known in (("mode", mode, get_args(Mode)), ("engine", engine, get_args(Engine))):
            if value not in known:
                raise MapError(f"{name}={value!r} is none of {', '.join(known)}")

    def rank_lists(self, lists: InvertedLists, codes: Bytes) -> NDArray[np.int32]:
        """All lists (Q, L), the nearest to each of codes (Q, code_bits / 8) first."""
        return lists.ranked(codes, len(lists), self._pool, self.num_threads)

    def select(self, wanted: Filter) -> list[CodeRange]:
        """The codes of all photos that fulfil a filter, in row order."""
        return [
            CodeRange(self._ranges[number].codes[start:end], self._first_rows[number] + start, allowed)
            for number, start, end, allowed in self._selected(wanted)
        ]

    def fulfilling(self, wanted: Filter) -> NDArray[np.bool_]:
        """Which rows (N,) can be returned and fulfil a filter."""
        found = np.zeros(len(self), dtype=np.bool_)
        for number, start, end, allowed in self._selected(wanted):
            first = self._first_rows[number]
            found[first + start : first + end] = True if allowed is None else allowed
        return found

    def _selected(self, wanted: Filter) -> Iterator[tuple[int, int, int, NDArray[np.bool_] | None]]:
        """Runs of rows that fulfil a filter: number of the shard, rows from and to, which of them (all: None)."""
        cover = None if wanted.area is None else cover_area(wanted.area)
        touched = np.flatnonzero(cover.touches(*self._cells)).tolist() if cover else range(len(self._shards))
        for number in touched:
            shard, first_row = self._shards[number], self._first_rows[number]
            for start, end, allowed in select(shard.positions, wanted, cover):
                if self.live is not None:
                    live = self.live[first_row + start : first_row + end]
                    allowed = live if allowed is None else allowed & live
                yield number, start, end, allowed

    @functools.cached_property
    def _cells(self) -> NDArray[np.uint64]:
        """The first and the last cell of each shard (2, n); shards without positions have none that an area covers."""
        ends = [
            shard.positions.cells[[0, -1]] if len(shard.positions.cells) else _NO_CELLS
            for shard in self._shards
        ]
        return np.array(ends, dtype=np.uint64).reshape(-1, 2).T

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Who the photos are, in row order: the columns of descriptors/v1 but the vectors, and `cell`.

        Removed photos keep their rows and are here too; `live` tells them apart. Photos of shards that were left
        out are not: then row i of the table is row `row_numbers()[i]` of the map.
        """
        tables = [shard.table.select(list(columns)) if columns else shard.table for shard in self._shards]
        if tables:
            return pa.concat_tables(tables)
        empty = rows_schema().empty_table()
        return empty.select(list(columns)) if columns else empty

    def row_numbers(self) -> NDArray[np.int64]:
        """The rows (n,) that `rows` has, ascending: all of them unless shards were left out."""
        return self._row_ranges.numbers()

    def records(self, rows: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """The same for a few rows (n,), in the order asked for; cheap however large the map is.

        Raises:
            MapError: a row that the map lacks, or one of a shard that was left out.
        """
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(self)):
            raise MapError(
                f"rows {rows.min()} to {rows.max()} asked for, the map has {len(self)}; -1 is nobody"
            )
        shard_of, inside = self._row_ranges.locate(rows)
        order = np.argsort(shard_of, kind="stable")
        pieces = [self.rows(columns).slice(0, 0)]
        for shard in np.unique(shard_of):
            local = inside[order][shard_of[order] == shard]
            table = self._shards[shard].table
            pieces.append((table.select(list(columns)) if columns else table).take(pa.array(local)))
        by_shard = pa.concat_tables(pieces).combine_chunks()
        return by_shard.take(pa.array(np.argsort(order)))

    def _shortlist(self, top_k: int, shortlist: int | None) -> int:
        size = max(top_k, default_shortlist(len(self))) if shortlist is None else shortlist
        if size < top_k:
            raise MapError(
                f"shortlist={size} is smaller than top_k={top_k}: stage 2 can only return what stage 1 found"
            )
        return size

    def _lists_for(self, mode: Mode, filtered: bool) -> InvertedLists | None:
        """The lists that a search is to use, None for an exact one."""
        if mode == "ivf" and self._lists is None:
            if self.manifest["index"]["type"] == "ivf":
                raise MapError(
                    f"{self._where} was opened without its damaged inverted lists: {self.damaged[-1]}"
                )
            raise MapError(
                f"{self._where} has no inverted lists: search with mode='exact', or build it with index.lists"
            )
        if mode == "ivf" and filtered:
            raise MapError("a filtered search is exact, it does not use lists: leave mode at 'auto'")
        return None if mode == "exact" or filtered else self._lists

    def _candidates(self, codes: Bytes, stage: "_Stage") -> Keys:
        """Stage 1: (Q, size) keys."""
        if stage.lists is not None:
            nprobe = stage.nprobe or int(self.manifest["index"]["nprobe"])
            return stage.lists.search(
                codes, stage.size, nprobe, pool=self._pool, num_threads=self.num_threads
            )
        if stage.within is None:
            return self._scan_all(codes, stage)
        keys = np.empty((len(codes), stage.size), dtype=np.uint64)
        for wanted, queries in _alike(stage.within, len(codes)):
            keys[queries] = self._scan_filtered(wanted, codes[queries], stage)
        return keys

    def _scan_all(self, codes: Bytes, stage: "_Stage") -> Keys:
        gpu = self._gpu_for(stage.engine, len(codes))
        if gpu is not None:
            try:
                return gpu.search(codes, stage.size, lambda some: self._scan(self._ranges, some, stage))
            except RuntimeError as error:
                self._leave_gpu(error)
        return self._scan(self._ranges, codes, stage)

    def _leave_gpu(self, error: RuntimeError) -> None:
        """Search on the CPU from now on, and say why."""
        self._gpu, self._no_gpu = None, f"the GPU has no room ({' '.join(str(error).split())})"
        warnings.warn(f"{self._where} is searched on the CPU: {self._no_gpu}", stacklevel=2)

    def _gpu_for(self, engine: Engine, num_queries: int) -> GpuCodes | None:
        """The GPU with the codes of the map, where a scan of all of them is to use one.

        Raises:
            MapError: engine is "gpu", and there is none with room for the codes.
        """
        worth_it = num_queries >= gpu_scan.MIN_QUERIES and len(self) >= gpu_scan.MIN_ROWS
        wanted = engine == "gpu" or (engine == "auto" and worth_it)
        if not wanted or not self._ranges:
            return None
        with self._gpu_lock:
            if self._gpu is None and not self._no_gpu:
                try:
                    self._gpu = GpuCodes(self._ranges)
                except RuntimeError as error:
                    self._leave_gpu(error)
            found = self._gpu
        if found is None and engine == "gpu":
            raise MapError(
                f"{self._where} cannot be searched on a GPU: {self._no_gpu}; leave engine at 'auto'"
            )
        return found

    def _scan_filtered(self, wanted: Filter, codes: Bytes, stage: "_Stage") -> Keys:
        circle = wanted.small_circle
        if circle is None or stage.engine not in ("auto", "gpu") or not is_for_pieces(len(codes), len(self)):
            return self._scan(self.select(wanted), codes, stage)
        found = pieces_near(circle, self._shards, self._first_rows, self._cells, self.live)
        return search_pieces(found.table, codes, stage.size, pool=self._pool, num_threads=self.num_threads)

    def _scan(self, ranges: Sequence[CodeRange], codes: Bytes, stage: "_Stage") -> Keys:
        return search_codes(
            ranges,
            codes,
            stage.size,
            pool=self._pool,
            num_threads=self.num_threads,
            engine=stage.engine,
            total_rows=len(self),
        )

    def _search_staged(
        self, codes: Bytes, descriptors: Floats | None, top_k: int, stage: "_Stage"
    ) -> SearchResult:
        began = time.perf_counter()
        keys = self._candidates(codes, stage)
        rows, distances = rows_of(keys), distances_of(keys)
        timings = {"first_stage": (time.perf_counter() - began) * 1e3}
        if descriptors is None:
            return SearchResult(rows, distances, np.full(rows.shape, np.nan, dtype=np.float32), timings)
        second = rerank(descriptors, rows, self._floats)
        timings |= {"gather": second.gather_ms, "rerank": second.compare_ms}
        order = second.order[:, :top_k]
        return SearchResult(
            np.take_along_axis(rows, order, axis=1),
            np.take_along_axis(distances, order, axis=1),
            second.similarity[:, :top_k],
            timings,
        )

    def _search_exhaustive(
        self,
        codes: Bytes | None,
        descriptors: Floats,
        top_k: int,
        within: Filter | Sequence[Filter] | None,
    ) -> SearchResult:
        began = time.perf_counter()
        if within is None:
            rows, similarity = search_exhaustive(descriptors, self._floats, top_k, self.live)
        else:
            rows = np.empty((len(descriptors), top_k), dtype=np.int64)
            similarity = np.empty((len(descriptors), top_k), dtype=np.float32)
            for wanted, queries in _alike(within, len(descriptors)):
                rows[queries], similarity[queries] = search_exhaustive(
                    descriptors[queries], self._floats, top_k, self.fulfilling(wanted)
                )
        timings = {"exhaustive": (time.perf_counter() - began) * 1e3}
        distances = np.full(rows.shape, -1, dtype=np.int32)
        if codes is not None and self.code_bits:
            for q, found in enumerate(rows):
                known = found[found >= 0]
                distances[q, : len(known)] = hamming(codes[q : q + 1], self.codes_of(known))[0]
        return SearchResult(rows, distances, similarity, timings)

    def _open_lists(self, damaged: Damaged, verify: bool) -> InvertedLists | None:
        if self.manifest["index"]["type"] != "ivf":
            return None
        quantizer, *folders = self._list_folders()
        try:
            runs = self.manifest["index"].get("runs")
            if runs is None:
                raise MapError(f"{self._where} has inverted lists of an earlier placeray: build it again")
            first_rows = [run["first_row"] for run in runs]
            lists = InvertedLists(quantizer, list(zip(folders, first_rows, strict=True)), self.live)
            if verify:
                self._verify_lists()
        except MapError as error:
            if damaged == "refuse":
                raise
            self.damaged.append(f"the inverted lists are left out, search is exact: {error}")
            return None
        return lists

    def _list_folders(self) -> list[Path]:
        return [storage.local_path(self.root) / path for path in self.manifest["index"]["files"]]

    def _verify_lists(self) -> None:
        for folder in self._list_folders():
            verify_lists(folder)

    def codes_of(self, rows: NDArray[np.int64]) -> Bytes:
        """Codes (n, code_bits / 8) of global rows (n,). Raises MapError for rows of a left-out shard."""
        codes = np.empty((len(rows), self.code_bits // 8), dtype=np.uint8)
        shard_of, inside = self._row_ranges.locate(rows)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            codes[here] = self._ranges[shard].codes[inside[here]]
        return codes

    def descriptors_of(self, rows: NDArray[np.int64]) -> Floats:
        """Descriptors (n, D) of global rows (n,), as they are stored, back in float32."""
        ((values, scales),) = self._floats.gather([rows])
        floats: Floats = values.astype(np.float32)
        return floats if scales is None else floats * scales[:, None]
