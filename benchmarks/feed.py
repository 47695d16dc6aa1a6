"""Decoded and augmented photos per second: our feed against a torch DataLoader that does what the reference does.

    python benchmarks/feed.py [--places 96] [--rounds 3] [--workers 2] [--size 224]

plain   torch DataLoader over JPEG files with one process per core: K photos of a place, PIL decodes in full, resize to
        a square, torchvision's RandAugment(3, 9), ToTensor, Normalize (transform of the published training code)
ours    `training.feed` over the same JPEGs in places/v1, with one thread per core

Drawn photos of street-like detail, half 640 x 480, half 1024 x 768; `by_size` has other sizes too. Then the memory of
the feed over a data set and over one of ten times its size, each in a process of its own, and how far reduced decoding
moves pixels. Takes about five minutes.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from placeray import contracts, storage
from placeray.datasets.writing import write_parquet
from placeray.model.preprocess import MEAN, STD, decode, to_pixels
from placeray.training.config import TrainConfig
from placeray.training.feed import PlacesFeed
from placeray.training.normalised import normalised

TARGETS = {"vs_torch_dataloader": ">= 1.5", "memory_of_ten_times_the_data": "<= 1.25"}
SIZES = {"mixed": [(640, 480), (1024, 768)], "400x300": [(400, 300)], "512x512": [(512, 512)],
         "640x480": [(640, 480)], "1024x768": [(1024, 768)]}  # fmt: skip
PHOTOS_OF_A_PLACE, K, PLACES_PER_BATCH = 6, 4, 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=2, help="cores: processes of `plain`, threads of `ours`"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory_of:
        print(json.dumps(peak_memory_mb(given.memory_of, given.size)))
        return
    with tempfile.TemporaryDirectory() as root:
        speeds = {name: measured(f"{root}/{name}", sizes, given) for name, sizes in SIZES.items()}
        memory = [memory_of(f"{root}/mixed", f"{root}/memory-{parts}", parts, given) for parts in (2, 20)]
        differ = {name: reduced_decoding_differs(sizes, given.size) for name, sizes in SIZES.items()}
    measure.finish(
        "feed",
        {
            "vs_torch_dataloader": speeds["mixed"]["ours"] / speeds["mixed"]["plain"],
            "memory_of_ten_times_the_data": max(memory[1]) / max(memory[0]),
        },
        TARGETS,
        photos_per_s_and_core={
            name: {way: round(value / given.workers, 1) for way, value in found.items()}
            for name, found in speeds.items()
        },
        by_size={name: round(found["ours"] / found["plain"], 2) for name, found in speeds.items()},
        memory_mb_by_sixth_of_an_epoch=[[round(value) for value in peaks] for peaks in memory],
        mean_difference_of_reduced_decoding={name: round(value, 2) for name, value in differ.items()},
        setting={"places": given.places, "k": K, "size": given.size, "cores": given.workers},
    )


def measured(root: str, sizes: list[tuple[int, int]], given: argparse.Namespace) -> dict[str, float]:
    """Photos per second of both ways."""
    files = draw_photos(root, sizes, given.places)
    write_places(f"{root}/places", files)
    feed = PlacesFeed(f"{root}/places", feed_config(given.size, given.workers))
    loader = DataLoader(
        Places(files, given.size),
        PLACES_PER_BATCH,
        shuffle=True,
        num_workers=given.workers,
        persistent_workers=True,
    )
    measure.say(
        f"{root.rsplit('/', 1)[1]}: {sum(f.stat().st_size for f in files) / len(files) / 1024:.0f} KB a photo"
    )
    epochs = iter(range(10**6))
    photos = given.places * K
    seconds = measure.alternate(
        {
            "plain": partial(consume, lambda: loader, photos),
            "ours": partial(consume, lambda: feed.epoch(next(epochs)), photos),
        },
        given.rounds,
    )
    feed.close()
    return {name: photos / value for name, value in seconds.items()}


def consume(batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]], photos: int) -> None:
    seen = sum(images.shape[:-3].numel() for images, _ in batches())
    assert seen == photos, f"{seen} photos seen, {photos} expected"


class Places(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """K random photos of a place, as the published training code reads them."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size), transforms.InterpolationMode.BILINEAR),
                transforms.RandAugment(3, 9, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files) // PHOTOS_OF_A_PLACE

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randperm(PHOTOS_OF_A_PLACE)[:K].tolist()
        photos = [Image.open(self.files[place * PHOTOS_OF_A_PLACE + k]).convert("RGB") for k in chosen]
        return torch.stack([self.transform(photo) for photo in photos]), torch.full((K,), place)


def feed_config(size: int, threads: int) -> TrainConfig:
    # A run of one epoch: otherwise the next one is read ahead, while it is the other contender's turn.
    values = {"places_per_batch": PLACES_PER_BATCH, "photos_per_place": K, "epochs": 1}
    return TrainConfig.model_validate(
        {**values, "preprocess": {"size_px": size}, "feed": {"decode_threads": threads}}
    )


def draw_photos(root: str, sizes: list[tuple[int, int]], places: int) -> list[Path]:
    """Some distinct JPEGs, repeated until every place has its photos."""
    folder = Path(root) / "jpeg"
    folder.mkdir(parents=True)
    distinct = [draw_photo(seed, sizes[seed % len(sizes)]) for seed in range(24)]
    files = [folder / f"{number:05d}.jpg" for number in range(places * PHOTOS_OF_A_PLACE)]
    for number, file in enumerate(files):
        file.write_bytes(distinct[number % len(distinct)])
    return files


def draw_photo(seed: int, size: tuple[int, int]) -> bytes:
    """Smooth light, fine grain and hard edges: as many bytes as a street photo of its size."""
    rng = np.random.default_rng(seed)
    width, height = size
    light = np.zeros((height, width, 3), np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256, 512):
        grain = rng.normal(0, 60 / cells**0.4, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        planes = [Image.fromarray(grain[..., c]).resize(size, Image.Resampling.BICUBIC) for c in range(3)]
        light += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    image = Image.fromarray(np.clip(128 + light, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(60):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        box = (left, top, left + int(rng.integers(5, width // 5)), top + int(rng.integers(5, height // 4)))
        draw.rectangle(box, fill=(*rng.integers(0, 256, 3).tolist(), 110))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_places(root: str, files: list[Path], parts: int = 1) -> None:
    """The photos as places/v1 of one domain per part."""
    entries = []
    for part in range(parts):
        rows = [
            place_row(part, at // PHOTOS_OF_A_PLACE, files[at : at + PHOTOS_OF_A_PLACE])
            for at in range(0, len(files), PHOTOS_OF_A_PLACE)
        ]
        table = pa.Table.from_pylist(rows, schema=contracts.table_schema("places/v1"))
        entries.append(
            write_parquet(root, f"drawn/{part:03d}.parquet", table, row_group_size=4, compression="none")
        )
    storage.commit_manifest(root, contracts.table_manifest("places/v1", entries, made_by={}))


def place_row(part: int, place: int, files: list[Path]) -> dict[str, object]:
    photos = [
        {
            "image_id": f"{part}-{place}-{k}",
            "source_uri": file.name,
            "sha256": "0" * 64,
            "image": file.read_bytes(),
        }
        for k, file in enumerate(files)
    ]
    name = f"drawn/{part}"
    return {"place_id": f"{name}/{place}", "dataset": "drawn", "city": "drawn", "domain": name, "lat": 0.0, "lon": 0.0,
            "num_photos": len(photos), "photos": photos}  # fmt: skip


def memory_of(photos: str, root: str, parts: int, given: argparse.Namespace) -> list[float]:
    """Peaks of memory, by sixth of an epoch over `parts` times the data, in a fresh process."""
    write_places(root, sorted((Path(photos) / "jpeg").iterdir()), parts)
    command = [sys.executable, __file__, "--memory-of", root, "--size", str(given.size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peaks: list[float] = json.loads(output.splitlines()[-1])
    megabytes = sum(storage.size(file) for file in storage.list_files(root)) / 2**20
    measure.say(f"{megabytes:.0f} MB of photos: {' '.join(f'{peak:.0f}' for peak in peaks)} MB of memory")
    return peaks


def peak_memory_mb(root: str, size: int) -> list[float]:
    """What the batches of an epoch take beyond a process that is ready to read its first one."""
    feed = PlacesFeed(root, feed_config(size, 2))
    normalised(np.zeros((1, size, size, 3), np.uint8))  # compiled once, whatever the data
    before, peaks = resident_mb(), [0.0] * 6
    for step, (images, _) in enumerate(feed.epoch(0)):
        time.sleep(
            0.02 * len(images) / K
        )  # a model at work, slower than two threads decode: the queue stands full
        sixth = step * len(peaks) // feed.steps_per_epoch
        peaks[sixth] = max(peaks[sixth], resident_mb() - before)
    return peaks


def resident_mb() -> float:
    """Memory of this process that no file backs: pages of libraries come and go with what others do."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def reduced_decoding_differs(sizes: list[tuple[int, int]], size: int) -> float:
    """Mean difference, in levels of 255, of the resized photo when it is decoded at reduced scale."""
    photos = [draw_photo(seed, sizes[seed % len(sizes)]) for seed in range(8)]
    pairs = [(to_pixels(decode(photo), size), to_pixels(decode(photo, size), size)) for photo in photos]
    return float(np.mean([np.abs(full.astype(np.int16) - reduced).mean() for full, reduced in pairs]))


if __name__ == "__main__":
    main()
