"""Descriptors in, a map out: the index job on Ray, one part per shard.

Shards are named by their content, so a part that an earlier run finished is recognised, an interrupted build goes
on, and a new version of a map shares what has not changed. The manifest follows the last shard, CURRENT the
manifest.
"""

import time
from typing import NamedTuple

from placeray import storage
from placeray.cluster.parts import Part, Report, run_parts
from placeray.retrieval.build import build_shard, finished_shard
from placeray.retrieval.lists import is_finished
from placeray.retrieval.manifest import (
    CURRENT,
    Manifest,
    advance,
    compose,
    find_build,
    read_map_manifest,
)
from placeray.retrieval.map_lists import (
    Run,
    build_lists,
    calibrate,
    calibrated,
    learn_quantizer,
    plan_runs,
    queries_of_descriptors,
    wanted_lists,
)
from placeray.retrieval.plan import IndexConfig, build_key_of, plan_map
from placeray.retrieval.publishing import missing_files, publish_whole


class IndexReport(NamedTuple):
    """What a run did. `already_finished`: the map was there."""

    output: str
    manifest: Manifest
    shards_built: int
    seconds: float
    already_finished: bool

    def line(self) -> str:
        """The line a person checks."""
        counts, version = self.manifest["counts"], self.manifest["version"]
        photos = f"read {counts['rows']}, kept {counts['rows']}, rejected 0"
        if self.already_finished:
            return f"index: already finished, nothing to do: {photos}; {self.output} is at {version}"
        return (
            f"index: {photos}; wrote {self.shards_built} of {counts['shards']} shards, {version} of "
            f"{self.output} has {counts['bytes'] / 1e6:.1f} MB, in {self.seconds:.1f} s"
        )


class ShardWriter:
    """The worker of this job: one planned shard in, its files on disk, its shard.json out."""

    def __init__(self, descriptors: str, output: str) -> None:
        self._descriptors, self._output = descriptors, output

    def __call__(self, part: Part) -> Report:
        return build_shard(part, self._descriptors, self._output)


class ListsWriter:
    """The worker of its second half: one run of shards in, its inverted lists on disk."""

    def __init__(self, output: str) -> None:
        self._output = output

    def __call__(self, part: Part) -> Report:
        build_lists(self._output, part)
        return {}


def build_index(
    config: IndexConfig,
    descriptors: str,
    output: str,
    *,
    queries: str | None = None,
    num_workers: int = 2,
    num_cpus: float = 1.0,
) -> IndexReport:
    """Build the map of a finished descriptors folder, or a new version of it.

    Nothing is done when the current version was built from the same descriptors with the same settings, or is an update
    of that, and all files are there; missing files of the build are made again. An older such version is published
    once more, as the newest.

    Args:
        queries: descriptors of held-out queries that inverted lists are calibrated with; photos of the map when None.

    Raises:
        StorageError: the descriptors are not finished, or `output` is in an object store or cannot be written.
        MapError: the descriptors cannot be indexed; the sentence says why.
    """
    start = time.monotonic()
    descriptors, output = storage.resolve(descriptors), str(storage.local_path(output))
    version = find_build(output, build_key_of(descriptors, config, queries))
    existing = None if version is None else read_map_manifest(output, version)
    if existing is not None and existing["index"]["type"] == "ivf" and "runs" not in existing["index"]:
        existing = None  # lists as an earlier placeray made them
    if existing is not None and not missing_files(output, existing):
        manifest = _as_newest(output, existing)
        return IndexReport(output, manifest, 0, time.monotonic() - start, already_finished=True)
    storage.check_can_write(storage.join(output, CURRENT))
    plan = plan_map(descriptors, config, queries)
    finished = {part["name"]: finished_shard(part, output) for part in plan["shards"]}
    shards = run_parts(
        plan["shards"],
        ShardWriter,
        {"descriptors": descriptors, "output": output},
        describe="index",
        num_workers=num_workers,
        num_cpus=num_cpus,
        done=lambda part: finished[part["name"]],
        unit="photos",
    )
    complete = compose(plan, shards)
    num_lists = wanted_lists(config, complete)
    if num_lists:
        quantizer = learn_quantizer(output, complete, num_lists)
        runs = plan_runs(existing or complete, quantizer)
        write_lists(output, runs, num_workers=num_workers, num_cpus=num_cpus)
        if existing is None:
            asked = None if queries is None else queries_of_descriptors(queries, complete)
            found = calibrate(output, complete, quantizer, config, asked)
            complete = calibrated(complete, quantizer, runs, found)
    manifest = _as_newest(output, existing) if existing else publish_whole(output, complete)
    built = sum(shard is None for shard in finished.values())
    return IndexReport(output, manifest, built, time.monotonic() - start, already_finished=False)


def _as_newest(output: str, build: Manifest) -> Manifest:
    """The newest version where that is a build or an update of it; else the build is published again."""
    advance(output)
    newest = read_map_manifest(output)
    if build["version"] in (newest["version"], newest.get("update", {}).get("build")):
        return newest
    unnamed = {key: value for key, value in build.items() if key not in ("version", "parent_version")}
    return publish_whole(output, unnamed)


def write_lists(output: str, runs: list[Run], *, num_workers: int = 2, num_cpus: float = 1.0) -> None:
    """Write the inverted lists of all runs of shards that have none yet."""
    run_parts(
        runs,
        ListsWriter,
        {"output": output},
        describe="lists",
        num_workers=num_workers,
        num_cpus=num_cpus,
        done=lambda part: {} if is_finished(storage.local_path(storage.join(output, part["path"]))) else None,
        unit="photos",
    )
