"""Draws a whole toy city below one folder: all layouts, their tables, and `toycity.json` at the very end.

Photos are drawn by a pool of processes; each follows from its task alone, so the bytes do not depend on how
many there are. A finished city is left alone, an interrupted one is continued.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from placeray import storage
from placeray.errors import ConfigError
from placeray.toycity.conditions import conditions
from placeray.toycity.config import ToyCityConfig
from placeray.toycity.layouts import LAYOUTS
from placeray.toycity.painter import encode_jpeg, paint
from placeray.toycity.photos import Damage, PhotoTask
from placeray.toycity.plan import LayoutPlan
from placeray.toycity.street import build_street

REPORT = "toycity.json"
STARTED = "toycity.started.json"  # the config of a city that is not finished yet
CHUNK = 32
POOL_PAYS_FROM = 400  # photos; starting processes takes as long as drawing some hundred

Progress = Callable[[int, int], None]


class CityReport(NamedTuple):
    """What stands below the root."""

    root: str
    photos: int  # image files, damaged ones included
    faults: int
    layouts: dict[str, Any]  # true counts: photos and, per part, read, kept, rejected by reason, places
    already_finished: bool
    seconds: float


def draw_city(
    config: ToyCityConfig, root: str, progress: Progress | None = None, num_workers: int | None = None
) -> CityReport:
    """Draw the city and write `toycity.json` (config, counts, planted faults) last.

    Args:
        root: a local folder; relative ones as in storage.resolve.
        progress: called with (photos finished, photos in all) now and then.
        num_workers: processes; None takes one per core, 1 draws in this process.

    Raises:
        ConfigError: another city stands there.
        StorageError: the root is in an object store.
    """
    began = time.perf_counter()
    folder = storage.local_path(root)
    values = config.model_dump(mode="json")
    finished = _look_for_city(folder, values)
    if finished is not None:
        return _report(folder, finished, True, began)
    storage.write_json(str(folder / STARTED), values)
    plans = [plan(config) for plan in LAYOUTS.values()]
    tasks = [task for plan in plans for task in plan.photos]
    _draw_all(config, folder, tasks, progress, num_workers)
    for plan in plans:
        for path, data in plan.files.items():
            storage.write_bytes(str(folder / path), data)
    document = _describe(values, plans)
    storage.write_json(str(folder / REPORT), document)
    storage.remove(str(folder / STARTED))
    return _report(folder, document, False, began)


def _look_for_city(folder: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a finished city of this config; None when there is nothing, or the start of this city."""
    for name in (REPORT, STARTED):
        file = folder / name
        if not file.exists():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        theirs = found["config"] if name == REPORT else found
        if theirs != values:
            differ = sorted(key for key in set(values) | set(theirs) if values.get(key) != theirs.get(key))
            raise ConfigError(
                f"{folder} holds another toy city (other {', '.join(differ)}): "
                "give this one another folder, or delete that one"
            )
        return found if name == REPORT else None
    return None


def _draw_all(
    config: ToyCityConfig,
    folder: Path,
    tasks: list[PhotoTask],
    progress: Progress | None,
    num_workers: int | None,
) -> None:
    for parent in sorted({str(Path(task.path).parent) for task in tasks}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    workers = num_workers or len(os.sched_getaffinity(0))
    chunks = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
    done = 0
    finished = (
        _draw_in_pool(config, folder, chunks, workers)
        if workers > 1 and len(tasks) >= POOL_PAYS_FROM
        else (draw_photos(config, str(folder), chunk) for chunk in chunks)
    )
    for count in finished:
        done += count
        if progress is not None:
            progress(done, len(tasks))


def _draw_in_pool(
    config: ToyCityConfig, folder: Path, chunks: list[list[PhotoTask]], workers: int
) -> Iterator[int]:
    # Spawned, not forked: the caller may hold threads and locks (Ray, torch).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = iter(chunks)
        running = {
            pool.submit(draw_photos, config, str(folder), chunk)
            for _, chunk in zip(range(4 * workers), waiting)
        }
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
            running |= {
                pool.submit(draw_photos, config, str(folder), chunk) for _, chunk in zip(ready, waiting)
            }


def draw_photos(config: ToyCityConfig, folder: str, tasks: list[PhotoTask]) -> int:
    """Draw and write photos, leaving those alone that are there; returns how many there were."""
    for task in tasks:
        path = os.path.join(folder, task.path)
        if os.path.exists(path):
            continue
        data = draw_photo(config, task)
        temporary = f"{path}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    return len(tasks)


def draw_photo(config: ToyCityConfig, task: PhotoTask) -> bytes:
    """The bytes of one photo file, damaged if the task says so."""
    now = conditions(task.shot, config.difficulty, config.jpeg_quality)
    photo = paint(build_street(task.street), task.pose, now, task.width_px, task.height_px, task.bearing_deg)
    return _damage(encode_jpeg(photo, now.jpeg_quality), task.damage)


def _damage(data: bytes, damage: Damage) -> bytes:
    if damage == "truncated":
        return data[: len(data) // 2]
    if damage == "empty":
        return b""
    if damage == "no_image":
        return b"<html><body>429 Too Many Requests</body></html>\n"
    return data


def _describe(values: dict[str, Any], plans: list[LayoutPlan]) -> dict[str, Any]:
    """The document `toycity.json`."""
    return {
        "config": values,
        "layouts": {plan.name: plan.counts() for plan in plans if plan.photos},
        "faults": [asdict(fault) for plan in plans for fault in plan.faults],
    }


def _report(folder: Path, document: dict[str, Any], already_finished: bool, began: float) -> CityReport:
    layouts = document["layouts"]
    return CityReport(
        root=str(folder),
        photos=sum(layout["photos"] for layout in layouts.values()),
        faults=len(document["faults"]),
        layouts={name: layouts[name] for name in LAYOUTS if name in layouts},
        already_finished=already_finished,
        seconds=time.perf_counter() - began,
    )
