"""The normalize job against a plain copy, against a plain loop, and its planning on millions of rows.

    python benchmarks/normalize.py [--photos 60000] [--decoded-photos 18000] [--rounds 1] [--folder DIR]
                                   [--rows 1000000 5000000] [--compare copy unchecked loop]

Photos are synthetic JPEGs of 640 x 480 pixels and about 100 KB in one tree of '@' names that becomes places.

- `vs_copy`: photos/s of the job with the decode check off, over `cp -r` of the tree plus reading the copy back. The
  start of the job is in it; `vs_copy_without_start` takes it off, measured as the same job on 16 photos.
- `vs_single_loop_unchecked`: the same job over a plain loop in one process that does not decode either.
- `vs_single_loop`: photos/s of the job with two workers, every photo decoded and shrunk to 512 pixels, over a plain
  loop in one process that does the same to the same photos and writes the same tables.
- `rows_5m_gib`, `rows_5m_vs_1m`: a child process lists, groups and plans a list of SF-XL names (every one of the 50
  groups kept): its peak memory, and its seconds for five times the rows.

Ray is up before the clock starts, as on a cluster; starting the workers is in the figures. The job syncs its files
to disk, the copy and the loop do not. Takes about ten minutes and, in --folder, 30 GB; `--compare copy --rows`,
`--compare loop --rows` and `--compare` are three pieces of it. Workers take more than a second to start, in which
`cp` copies a gigabyte from memory: the ratios are those of sets of some size (60,000 photos are a ninth of
GSV-Cities), and `--photos 6000` shows what the start makes of small ones.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from placeray import contracts
from placeray.cluster.normalizing import normalize
from placeray.cluster.parts import ensure_ray
from placeray.datasets.planning import NormalizeConfig, plan_source, write_plan

TARGETS = {
    "vs_copy": ">= 0.5",
    "vs_single_loop": ">= 1.6",
    "rows_5m_gib": "<= 4",
    "rows_5m_vs_1m": "<= 6",
}
COMPARISONS = ["copy", "unchecked", "loop"]
PHOTOS_PER_PLACE = 8
PHOTOS_PER_FILE = 800
SIDE_PX = 512

Measured = tuple[dict[str, float], dict[str, Any]]  # ratios and figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=60_000, help="where nothing is decoded")
    parser.add_argument("--decoded-photos", type=int, default=18_000, help="where every photo is")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 5_000_000])
    parser.add_argument("--compare", nargs="*", choices=COMPARISONS, default=COMPARISONS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plan:
        plan_in_this_process(given.plan)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        ratios, figures = {}, {}
        for measured in (plain_ratios, decoded_ratios):
            more_ratios, more_figures = measured(Path(folder), given)
            ratios |= more_ratios
            figures |= more_figures
        more_ratios, rows = row_ratios(Path(folder), given.rows)
    measure.finish("normalize", ratios | more_ratios, TARGETS, **figures, rows=rows)


def plain_ratios(folder: Path, given: argparse.Namespace) -> Measured:
    """Of the job, the copy and the loop with nothing decoded."""
    if "copy" not in given.compare and "unchecked" not in given.compare:
        return {}, {}
    tree, few, out = folder / "tree", folder / "few", folder / "out"
    num_bytes = draw_tree(tree, given.photos)
    draw_tree(few, 16)
    ensure_ray()
    plain = {"decode_check": "none"}
    runs: dict[str, Callable[[], object]] = {}
    if "copy" in given.compare:
        runs["copy"] = partial(copy_and_read, tree, folder / "copies")
    runs["job"] = partial(run_job, tree, out, plain)
    runs["start"] = partial(run_job, few, out, plain)
    if "unchecked" in given.compare:
        runs["loop"] = partial(plain_loop, tree, out, False)
    seconds = measure.alternate(settled(runs, folder), given.rounds)
    seconds["job without start"] = seconds["job"] - seconds["start"]
    ratios = {}
    if "copy" in given.compare:
        ratios["vs_copy"] = seconds["copy"] / seconds["job"]
        ratios["vs_copy_without_start"] = seconds["copy"] / seconds["job without start"]
    if "unchecked" in given.compare:
        ratios["vs_single_loop_unchecked"] = seconds["loop"] / seconds["job"]
    shutil.rmtree(tree)
    shutil.rmtree(folder / "copies", ignore_errors=True)
    return ratios, {"plain": speeds(seconds, given.photos, num_bytes)}


def decoded_ratios(folder: Path, given: argparse.Namespace) -> Measured:
    """Of the job and the loop with every photo decoded and shrunk."""
    if "loop" not in given.compare:
        return {}, {}
    tree, out = folder / "decoded", folder / "out"
    num_bytes = draw_tree(tree, given.decoded_photos)
    ensure_ray()
    runs: dict[str, Callable[[], object]] = {
        "loop, shrunk": partial(plain_loop, tree, out, True),
        "job, shrunk": partial(run_job, tree, out, {"decode_check": "full", "max_side_px": SIDE_PX}),
    }
    seconds = measure.alternate(settled(runs, folder), given.rounds)
    ratios = {"vs_single_loop": seconds["loop, shrunk"] / seconds["job, shrunk"]}
    return ratios, {"decoded": speeds(seconds, given.decoded_photos, num_bytes)}


def speeds(seconds: dict[str, float], photos: int, num_bytes: int) -> dict[str, Any]:
    """What was measured, as seconds, photos per second and MB per second."""
    worked = {name: value for name, value in seconds.items() if not name.startswith("settle")}
    moved = {name: value for name, value in worked.items() if name != "start"}
    return {
        "photos": photos,
        "photo_mb": round(num_bytes / 1e6),
        "seconds": {name: round(value, 2) for name, value in worked.items()},
        "photos_per_s": {name: round(photos / value) for name, value in moved.items()},
        "mb_per_s": {name: round(num_bytes / 1e6 / value, 1) for name, value in moved.items()},
    }


def settled(runs: dict[str, Callable[[], object]], folder: Path) -> dict[str, Callable[[], object]]:
    """The same runs, each after one that waits for the disk."""
    return {
        key: value
        for name, run in runs.items()
        for key, value in ((f"settle before {name}", partial(settle, folder)), (name, run))
    }


def row_ratios(folder: Path, sizes: list[int]) -> Measured:
    """Seconds and peak memory of planning, each size in a process of its own."""
    figures: dict[str, Any] = {}
    for size in sizes:
        root = folder / f"rows-{size}"
        write_list(root / "processed" / "train_images_paths.txt", size)
        command = [sys.executable, __file__, "--plan", str(root)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        figures[str(size)] = json.loads(result.stdout.splitlines()[-1])
        measure.say(f"{size} rows: {figures[str(size)]}")
        shutil.rmtree(root)
    ratios = {}
    if {"1000000", "5000000"} <= figures.keys():
        ratios["rows_5m_gib"] = figures["5000000"]["peak_gib"]
        ratios["rows_5m_vs_1m"] = figures["5000000"]["seconds"] / figures["1000000"]["seconds"]
    return ratios, figures


def plan_in_this_process(root: Path) -> None:
    """List, group and plan; prints one JSON object."""
    config = NormalizeConfig.model_validate(
        {"sources": [{"kind": "sf_xl", "root": str(root), "places": {"cell_m": 10, "cell_stride": 5}}]}
    )
    before = peak_gib()
    start = time.perf_counter()
    plan = plan_source(config.sources[0], config)
    grouped = time.perf_counter() - start
    parts = write_plan(plan, config, str(root / "out"))
    elapsed = time.perf_counter() - start
    rows = sum(part["rows"] for part in parts)
    assert rows == plan.counts["read"], "rows were lost"
    answer = {
        "seconds": round(elapsed, 2),
        "list_and_group_s": round(grouped, 2),
        "rows_per_s": round(rows / elapsed),
        "peak_gib": round(peak_gib(), 3),
        "peak_before_gib": round(before, 3),
        "parts": len(parts),
        "parts_of_places": sum(part["places_path"] is not None for part in parts),
        "plan_mb": round(sum(part["plan_end"] - part["plan_start"] for part in parts) / 1e6, 1),
    }
    print(json.dumps(answer), flush=True)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_list(file: Path, count: int, piece: int = 240_000) -> None:
    """SF-XL names as dense as in San Francisco: 3.4 million panoramas on 120 square kilometres, 12 crops of each.

    Panoramas come in random order, so nothing is sorted.
    """
    file.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    side_m = (count / 12 / 0.0286) ** 0.5
    alphabet = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", dtype="S1")
    with file.open("w") as sink:
        for start in range(0, count, piece):
            rows = min(piece, count - start)
            panoramas = -(-rows // 12)
            east = 544_000 + rng.uniform(0, side_m, panoramas)
            north = 4_172_000 + rng.uniform(0, side_m, panoramas)
            ids = alphabet[rng.integers(0, 64, (panoramas, 22))].view("S22").ravel().astype("U22")
            when = rng.integers(2008, 2022, panoramas) * 100 + rng.integers(1, 13, panoramas)
            lines = [
                f"{lat:.2f}/@{e:010.2f}@{n:010.2f}@10@S@{lat:09.5f}@{lon:010.5f}@{pano}@@{30 * crop}@@@@{month}@@.jpg\n"
                for e, n, pano, month in zip(east, north, ids, when, strict=True)
                for lat, lon in [(37.7 + (n - 4_172_000) / 111_000, -122.5 + (e - 544_000) / 88_000)]
                for crop in range(12)
            ]
            sink.writelines(lines[:rows])


def draw_tree(tree: Path, count: int) -> int:
    """`count` photos of places 45 m apart, in folders of 500; returns their bytes."""
    drawn = [draw_photo(seed) for seed in range(64)]
    total = 0
    for number in range(count):
        place = number // PHOTOS_PER_PLACE
        east, north = 500_000 + 45 * (place % 1000), 4_000_000 + 45 * (place // 1000)
        name = f"@{east:010.2f}@{north:010.2f}@17@T@036.14@-081.00@p{number}@00@10@@@@2016@@.jpg"
        file = tree / "images" / "train" / "database" / f"{number // 500:03d}" / name
        if number % 500 == 0:
            file.parent.mkdir(parents=True)
        # A comment segment at the end makes each file another one.
        data = drawn[number % len(drawn)] + f"{number:08d}".encode()
        file.write_bytes(data)
        total += len(data)
    return total


def draw_photo(seed: int) -> bytes:
    """A JPEG of 640 x 480 with the detail of a street: about 100 KB."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
    noise = rng.normal(0, 4.5, (480, 640, 1))
    pixels = np.clip(np.asarray(coarse, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(pixels).save(sink, "JPEG", quality=88)
    return sink.getvalue()


def config_of(tree: Path, photos: dict[str, Any]) -> NormalizeConfig:
    source = {"kind": "at_layout", "name": "town", "root": str(tree), "split": "train", "queries": None}
    return NormalizeConfig.model_validate(
        {"sources": [source], "photos": photos, "photos_per_file": PHOTOS_PER_FILE}
    )


def run_job(tree: Path, out: Path, photos: dict[str, Any]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    report = normalize(config_of(tree, photos), str(out), num_workers=2)
    assert report.total("kept") == report.total("read"), "photos were refused"


def settle(folder: Path) -> None:
    """Remove the last output and wait for the disk, so that no run pays for what the one before left to write. Earlier
    copies leave the memory, which then has room for the photos and for what the next run writes.
    """
    shutil.rmtree(folder / "out", ignore_errors=True)
    os.sync()
    for file in (folder / "copies").rglob("*.jpg"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy_and_read(tree: Path, copies: Path) -> None:
    """`cp -r` and reading the copy back. Copies stay until the end: on ext4, copies made after a removal took three to
    seven times as long, probably because it passes over recently deleted inodes one by one.
    """
    copies.mkdir(exist_ok=True)
    out = copies / str(len(list(copies.iterdir())))
    subprocess.run(["cp", "-r", str(tree), str(out)], check=True)
    for folder, _, names in os.walk(out):
        for name in names:
            Path(folder, name).read_bytes()


def plain_loop(tree: Path, out: Path, shrink: bool) -> None:
    """One process: read, decode and shrink (if asked), hash, group into cells, write tables of places and photos."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    cells: dict[tuple[int, int, int], list[tuple[str, Path, list[str]]]] = defaultdict(list)
    for folder, _, names in os.walk(tree):
        for name in names:
            fields = name.split("@")
            key = (float(fields[1]) // 15, float(fields[2]) // 15, float(fields[9]) // 60)
            path = Path(folder, name)
            cells[key].append((hashlib.md5(str(path).encode()).hexdigest(), path, fields))
    groups: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for key, photos in sorted(cells.items()):
        if len(photos) >= 4:
            groups[key[0] % 3, key[1] % 3, key[2] % 2].append((key, sorted(photos)))
    for group, places in sorted(groups.items()):
        per_file = PHOTOS_PER_FILE // PHOTOS_PER_PLACE
        for start in range(0, len(places), per_file):
            name = "-".join(str(int(part)) for part in group) + f".{start // per_file:04d}"
            write_loop_file(out, name, places[start : start + per_file], shrink)


def write_loop_file(out: Path, name: str, places: list[Any], shrink: bool) -> None:
    """One file of places with its photos inside, and one of photos, each with its hash."""
    rows, images = [], []
    for key, photos in places:
        inner = []
        for image_id, path, fields in photos:
            data = path.read_bytes()
            width, height = None, None
            if shrink:
                data, width, height = shrink_photo(data)
            sha256 = hashlib.sha256(data).hexdigest()
            known = {
                "image_id": image_id, "utm_east": float(fields[1]), "utm_north": float(fields[2]),
                "utm_zone": fields[3] + fields[4], "lat": float(fields[5]), "lon": float(fields[6]),
                "heading_deg": float(fields[9]), "captured": fields[13], "panorama_id": fields[7],
                "source_uri": str(path), "sha256": sha256,
            }  # fmt: skip
            inner.append({**known, "frame": None, "image": data})
            images.append(
                {**known, "dataset": "town", "city": "town", "split": "train", "role": "train", "width": width,
                 "height": height, "place_id": str(key)}
            )  # fmt: skip
        lat = sum(photo["lat"] for photo in inner) / len(inner)
        lon = sum(photo["lon"] for photo in inner) / len(inner)
        rows.append(
            {"place_id": str(key), "dataset": "town", "city": "town", "domain": name, "lat": lat, "lon": lon,
             "num_photos": len(inner), "photos": inner}
        )  # fmt: skip
    for kind, values in (("places", rows), ("images", images)):
        schema = contracts.table_schema(f"{kind}/v1")
        filled = [{field.name: row.get(field.name) for field in schema} for row in values]
        file = out / f"{kind}-{name}.parquet"
        pq.write_table(
            pa.Table.from_pylist(filled, schema=schema), file, row_group_size=4, compression="none"
        )
        (out / f"{file.name}.sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())


def shrink_photo(data: bytes) -> tuple[bytes, int, int]:
    with PIL.Image.open(io.BytesIO(data)) as image:
        scale = SIDE_PX / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        small = image.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=92)
    return sink.getvalue(), *size


if __name__ == "__main__":
    main()
