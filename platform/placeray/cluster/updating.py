"""Keep a map current: new shards are written on Ray, all else needs no cluster and is done here."""

import time

from placeray import storage
from placeray.cluster.indexing import ShardWriter
from placeray.cluster.parts import run_parts
from placeray.retrieval.build import finished_shard
from placeray.retrieval.manifest import Manifest
from placeray.retrieval.update import UpdateConfig, finish_update, plan_update


def update_map(
    config: UpdateConfig, root: str, descriptors: str | None, *, num_workers: int = 2, num_cpus: float = 1.0
) -> tuple[Manifest, str]:
    """Add, replace and remove photos as one new version; nothing when CURRENT is the result of the same update.

    Returns:
        The manifest of the version, and the line a person checks.

    Raises:
        StorageError: the descriptors are not finished, or the map is in an object store.
        MapError: the update is refused; the sentence says why.
    """
    start = time.monotonic()
    root = str(storage.local_path(root))
    plan = plan_update(root, config, descriptors)
    if plan.finished is not None:
        return (
            plan.finished,
            f"update_map: already finished, nothing to do: {root} is at {plan.finished['version']}",
        )
    finished = {part["name"]: finished_shard(part, root) for part in plan.parts}
    shards = []
    if plan.parts:
        shards = run_parts(
            plan.parts,
            ShardWriter,
            {"descriptors": storage.resolve(str(descriptors)), "output": root},
            describe="update",
            num_workers=num_workers,
            num_cpus=num_cpus,
            done=lambda part: finished[part["name"]],
            unit="photos",
        )
    manifest = finish_update(plan, shards)
    added = sum(part["rows"] for part in plan.parts)
    return manifest, (
        f"update_map: read {added}, added {added} (of them {plan.replaced} replaced), removed {plan.removed}, unknown "
        f"{plan.unknown}; {manifest['version']} of {root}, in {time.monotonic() - start:.1f} s"
    )
