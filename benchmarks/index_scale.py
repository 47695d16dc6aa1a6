"""The index job at 10 million photos: memory, time, kills, opening.

    python benchmarks/index_scale.py [--photos 10000000] [--dim 256] [--kills 5] [--folder DIR]

Draws a descriptors folder, then runs `jobs/index.py` as a user does: once undisturbed with its memory watched, once
killed with SIGKILL at random moments (driver and workers) and started again each time. Checks that both maps have the
same shards and lists byte for byte and that no finished shard was written again. Memory is what all processes of the
job hold themselves (anonymous and shared, without the files they map). Takes a quarter of an hour and 20 GB of disk at
10 million photos.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa

from placeray import storage
from placeray.contracts import table_manifest, table_schema
from placeray.retrieval.place_map import PlaceMap

CODE_BITS, ROWS_PER_FILE, ROWS_PER_SHARD = 512, 250_000, 1_000_000
JOB = Path(__file__).resolve().parent.parent / "jobs" / "index.py"
TARGETS = {
    "memory_gib_beyond_codes": "<= 4",
    "open_s": "<= 1",
    "same_bytes_after_kills": ">= 1",
    "shards_redone": "<= 0",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--lists", type=int, help="inverted lists; by the size of the map when left out")
    parser.add_argument("--folder", help="where to write; a temporary folder when left out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="placeray-scale-", dir=asked.folder) as name:
        folder = Path(name)
        draw(folder / "descriptors", asked.photos, asked.dim)
        run(folder, asked.photos, asked.dim, asked.kills, asked.lists)


def run(folder: Path, num_photos: int, dim: int, kills: int, lists: int | None) -> None:
    more = [] if lists is None else [f"index.lists={lists}"]
    began = time.perf_counter()
    peak = finish(start(folder, "map", more))
    seconds = time.perf_counter() - began
    measure.say(f"undisturbed: {seconds:.0f} s, {peak / 2**30:.2f} GiB")
    moments, redone = killed(folder, more, kills, seconds)
    began = time.perf_counter()
    with PlaceMap.open(str(folder / "map")) as place_map:
        open_s = time.perf_counter() - began
        manifest = place_map.manifest
        first = place_map.codes_of(np.array([0, num_photos // 2, num_photos - 1]))
        assert (place_map.search(first, None, top_k=1).hamming == 0).all()
    same = contents(folder / "map") == contents(folder / "killed")
    codes = num_photos * CODE_BITS // 8
    measure.finish(
        "index_scale",
        {
            "memory_gib_beyond_codes": max(peak - codes, 0) / 2**30,
            "open_s": open_s,
            "same_bytes_after_kills": float(same),
            "shards_redone": float(redone),
        },
        TARGETS,
        photos=num_photos,
        descriptor_dim=dim,
        seconds=round(seconds, 1),
        photos_per_s=round(num_photos / seconds),
        peak_gib=round(peak / 2**30, 2),
        killed_after_s=moments,
        map_gb=round(manifest["counts"]["bytes"] / 1e9, 2),
        shards=manifest["counts"]["shards"],
        index={
            name: manifest["index"][name]
            for name in ("type", "nprobe", "calibration")
            if name in manifest["index"]
        },
    )


def start(folder: Path, name: str, more: list[str]) -> subprocess.Popen[str]:
    settings = [
        f"descriptors={folder / 'descriptors'}", f"output={folder / name}", f"index.rows_per_shard={ROWS_PER_SHARD}",
        "num_workers=2", *more,
    ]  # fmt: skip
    command = [sys.executable, str(JOB), *(part for text in settings for part in ("--set", text))]
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent / "platform")}
    return subprocess.Popen(
        command, start_new_session=True, env=environment, stdout=subprocess.PIPE, text=True
    )


def finish(job: subprocess.Popen[str]) -> int:
    """Wait for a job; returns the most memory in bytes that its processes held."""
    peak = 0
    while job.poll() is None:
        peak = max(peak, sum(held(process) for process in family(job.pid)))
        time.sleep(0.25)
    assert job.returncode == 0, "the index job failed"
    assert job.stdout is not None
    measure.say(job.stdout.read().strip().splitlines()[-1])
    return peak


def killed(folder: Path, more: list[str], kills: int, seconds: float) -> tuple[list[float], int]:
    """Build with interruptions; when each came, and how many finished shards or lists were written again."""
    rng, written, redone, moments = random.Random(7), dict[Path, int](), 0, []
    for _ in range(kills):
        job = start(folder, "killed", more)
        moment = rng.uniform(0.1, 0.6) * seconds
        moments.append(round(moment, 1))
        try:
            job.wait(moment)
            measure.say("it finished before it was killed")
        except subprocess.TimeoutExpired:
            for process in family(job.pid):
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            job.wait()
            measure.say(f"killed after {moment:.0f} s")
        now = markers(folder / "killed")
        redone += sum(now.get(path) != when for path, when in written.items())
        written = now
    finish(start(folder, "killed", more))
    now = markers(folder / "killed")
    return moments, redone + sum(now.get(path) != when for path, when in written.items())


def markers(root: Path) -> dict[Path, int]:
    """The files that say that a shard or its lists are finished, and when they were written."""
    names = ("shard.json", "lists.json", "quantizer.json")
    return {path: path.stat().st_mtime_ns for name in names for path in root.rglob(name)}


def contents(root: Path) -> dict[str, str]:
    """Hash of every file of shards and lists."""
    found = {}
    for part in ("shards", "ivf"):
        for path in sorted((root / part).rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    found[str(path.relative_to(root))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(text.rsplit(")", 1)[1].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def held(process: int) -> int:
    """Bytes of memory that are no file's."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def draw(root: Path, num_photos: int, dim: int) -> None:
    """A descriptors folder in no order: positions at random, 32-character ids, ten photos of a place alike."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((ROWS_PER_FILE, dim), np.float32)
    noise = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float16)
    schema = table_schema("descriptors/v1", {"descriptor": dim})
    files: list[dict[str, Any]] = []
    for start in range(0, num_photos, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, num_photos - start)
        places = rng.integers(0, 256, (-(-count // 10), CODE_BITS // 8), dtype=np.uint8)
        flips = np.packbits(rng.random((count, CODE_BITS), np.float32) < 0.1, axis=1)
        codes = np.repeat(places, 10, axis=0)[:count] ^ flips
        ids = pa.array(
            [f"{value:032x}" for value in rng.integers(0, 2**62, count).astype(object) * 2**30 + start]
        )
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * (CODE_BITS // 8)).buffers()[1]
        known = {
            "image_id": ids,
            "source_uri": ids,
            "lat": pa.array(46 + 3 * rng.random(count)),
            "lon": pa.array(5 + 5 * rng.random(count)),
            "code": pa.Array.from_buffers(pa.binary(), count, [None, offsets, pa.py_buffer(codes)]),
            "descriptor": pa.FixedSizeListArray.from_arrays(pa.array(noise[:count].reshape(-1)), dim),
        }
        table = pa.table([known.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)
        name = f"{start:09d}.parquet"
        storage.write_table(str(root / name), table, row_group_size=8192, compression="none")
        with (root / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"path": name, "rows": count, "bytes": (root / name).stat().st_size, "sha256": digest})
        measure.say(f"drew {start + count} of {num_photos} photos")
    properties = {"model_id": "drawn", "preprocessing": "none", "code_bits": CODE_BITS, "descriptor_dim": dim}
    storage.commit_manifest(
        str(root), table_manifest("descriptors/v1", files, made_by={}, properties=properties)
    )


if __name__ == "__main__":
    main()
