"""Writes photos of known position into the four raw layouts, and groups them as the published scripts do.

Loaded by its path: by the unit tests of the readers, and by the test that normalizes these trees on Ray. The
twins are slow and obvious on purpose: one photo at a time, text taken apart by hand, nothing of the package.

Sources: `Tong-Jin01/Unified_dataset:preprocess_msls.py, preprocess_pitts30k.py, datasets/train_dataset.py`,
`gmberton/CosPlace:datasets/train_dataset.py`, `amaralibey/gsv-cities:dataloaders/train/GSVCitiesDataset.py`.
"""

import csv
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyproj
import scipy.io

# A class of the reference, here with its UTM zone, and a group: classes and their photos.
Class = tuple[str, int, int, int]
Group = frozenset[tuple[Class | tuple[str, int], frozenset[str]]]


class RealPhoto(NamedTuple):
    """A photo to be rewritten; `heading` is None where nobody knows it."""

    file: Path
    city: str
    lat: float
    lon: float
    heading: int | None
    captured: str  # YYYYMMDD, or empty


class Rule(NamedTuple):
    """M, N, alpha, L and the fewest photos of a class."""

    cell_m: int
    stride: int
    bin_deg: int
    bin_stride: int
    min_photos: int


def read_real_photos(real_data: Path, num_campus: int | None = None) -> list[RealPhoto]:
    """The street walk of Lund, which looks where it goes, and campus photos of Pittsburgh, some with a compass."""
    with open(real_data / "opensfm_lund/manifest.csv", newline="") as file:
        walk = [(row["path"], float(row["lat"]), float(row["lon"])) for row in csv.DictReader(file)]
    photos = []
    for number, (path, lat, lon) in enumerate(walk):
        _, next_lat, next_lon = walk[min(number + 1, len(walk) - 1)]
        bearing = pyproj.Geod(ellps="WGS84").inv(lon, lat, next_lon, next_lat)[0] % 360
        photos.append(RealPhoto(real_data / "opensfm_lund" / path, "lund", lat, lon, int(bearing), ""))
    with open(real_data / "cmu_campus/manifest.csv", newline="") as file:
        for row in list(csv.DictReader(file))[:num_campus]:
            heading = int(float(row["gps_img_direction"])) % 360 if row["gps_img_direction"] else None
            lat, lon = float(row["lat"]), float(row["lon"])
            file_path = real_data / "cmu_campus" / row["path"]
            photos.append(
                RealPhoto(
                    file_path, "pittsburgh", lat, lon, heading, re.sub(r"\D", "", row["captured_at"])[:8]
                )
            )
    return photos


def utm(lat: float, lon: float) -> tuple[float, float, int, str]:
    """East, north, zone number and band letter by the formulas for most of the world."""
    zone = int((lon + 180) // 6) + 1
    letter = "CDEFGHJKLMNPQRSTUVWX"[min(int((lat + 80) // 8), 19)]
    code = (32600 if lat >= 0 else 32700) + zone
    east, north = pyproj.Transformer.from_crs(4326, code, always_xy=True).transform(lon, lat)
    return east, north, zone, letter


def at_name(photo: RealPhoto, number: int, tile: str = "", heading: str = "", note: str = "") -> str:
    """A name of sixteen fields as util.py of VPR-datasets-downloader formats it."""
    east, north, zone, letter = utm(photo.lat, photo.lon)
    return (
        f"@{east:010.2f}@{north:010.2f}@{zone:02d}@{letter}@{photo.lat:09.5f}@{photo.lon:010.5f}"
        f"@{number:06d}@{tile}@{heading}@@@@{photo.captured}@{note}@.jpg"
    )


# --- writers: the photos become a tree, and the path of each is returned ---


def write_gsv_cities(root: Path, photos: list[RealPhoto]) -> dict[str, RealPhoto]:
    """Places are blocks of about 30 m, numbered inside their city; every other heading is written beyond 360."""
    paths: dict[str, RealPhoto] = {}
    rows: dict[str, list[list[str]]] = defaultdict(list)
    blocks: dict[str, dict[tuple[int, int], int]] = defaultdict(dict)
    for number, photo in enumerate(photos):
        if photo.heading is None:
            continue
        east, north, _, _ = utm(photo.lat, photo.lon)
        known = blocks[photo.city]
        place = known.setdefault((int(east // 30), int(north // 30)), len(known))
        northdeg = photo.heading + 360 * (number % 2)
        panoid = f"{number:08d}" if number % 3 else f"_p-{number}_"
        year, month = (int(photo.captured[:4]), int(photo.captured[4:6])) if photo.captured else (2014, 8)
        name = f"{photo.city}_{place:07d}_{year:04d}_{month:02d}_{northdeg:03d}_{photo.lat}_{photo.lon}_{panoid}.jpg"
        path = f"Images/{photo.city}/{name}"
        rows[photo.city].append(
            [
                str(place),
                str(year),
                str(month),
                str(northdeg),
                photo.city,
                str(photo.lat),
                str(photo.lon),
                panoid,
            ]
        )
        paths[path] = photo
        _copy(photo, root / path)
    for city, lines in rows.items():
        table = root / f"Dataframes/{city}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        header = "place_id,year,month,northdeg,city_id,lat,lon,panoid"
        table.write_text("\n".join([header, *map(",".join, lines), ""]))
    return paths


def write_sf_xl(root: Path, photos: list[RealPhoto]) -> dict[str, RealPhoto]:
    """processed/train/<latitude>/@...: unpadded headings among padded ones, and the list beside the folder."""
    paths = {}
    for number, photo in enumerate(photos):
        heading = (
            "" if photo.heading is None else f"{photo.heading:03d}" if number % 2 else f"{photo.heading}"
        )
        path = f"processed/train/{photo.lat:.2f}/{at_name(photo, number, heading=heading)}"
        paths[path] = photo
        _copy(photo, root / path)
    listed = [path.removeprefix("processed/train/") for path in paths]
    (root / "processed/train_images_paths.txt").write_text("".join(f"{line}\n" for line in listed))
    return paths


def write_pitts30k(root: Path, photos: list[RealPhoto]) -> dict[str, RealPhoto]:
    """images/train/{database,queries}/@...: the heading is in the tile, of the first or of the second pitch."""
    paths = {}
    for number, photo in enumerate(photos):
        role = "queries" if number % 4 == 0 else "database"
        pitch, yaw = 1 + number % 2, None if photo.heading is None else photo.heading // 30
        tile = "" if yaw is None else f"{(pitch - 1) * 24 + yaw:02d}"
        note = "" if yaw is None else f"pitch{pitch}_yaw{yaw + 1}"
        path = f"images/train/{role}/{at_name(photo, number, tile=tile, note=note)}"
        paths[path] = photo
        _copy(photo, root / path)
    return paths


def write_pitts30k_mat(root: Path, photos: list[RealPhoto]) -> dict[str, RealPhoto]:
    """datasets/pitts30k_train.mat: photos of zone 17T alone, as the file names no zone."""
    paths, names, metres = {}, {"database": [], "queries": []}, {"database": [], "queries": []}
    for number, photo in enumerate(photos):
        east, north, zone, _ = utm(photo.lat, photo.lon)
        if zone != 17:
            continue
        role = "queries" if number % 4 == 0 else "database"
        stem = (
            f"{number:06d}_p"
            if photo.heading is None
            else f"{number:06d}_pitch{1 + number % 2}_yaw{photo.heading // 30 + 1}"
        )
        names[role].append(f"{number % 7:03d}/{stem}.jpg")
        metres[role].append((round(east, 2), round(north, 2)))
        path = ("queries_real/" if role == "queries" else "") + names[role][-1]
        paths[path] = photo
        _copy(photo, root / path)
    fields: dict[str, Any] = {"whichSet": "train"}
    for role, key, positions in (("database", "dbImageFns", "utmDb"), ("queries", "qImageFns", "utmQ")):
        cells = np.empty((len(names[role]), 1), dtype=object)
        cells[:, 0] = names[role]
        fields |= {key: cells, positions: np.array(metres[role]).T}
    fields |= {"numImages": 1.0, "numQueries": 1.0, "posDistThr": 25.0, "posDistSqThr": 625.0}
    (root / "datasets").mkdir(parents=True)
    scipy.io.savemat(
        root / "datasets/pitts30k_train.mat", {"dbStruct": fields | {"nonTrivPosDistSqThr": 100.0}}
    )
    return paths


def write_msls(root: Path, photos: list[RealPhoto]) -> dict[str, RealPhoto]:
    """train_val/<city>/{database,query} with raw.csv: longitude first, and Windows line ends for the queries.

    Every 17th photo is flagged as a panorama, and so is the last line, which has no line end.
    """
    paths: dict[str, RealPhoto] = {}
    rows: dict[tuple[str, str], list[tuple[str, RealPhoto]]] = {}
    for number, photo in enumerate(photos):
        role = "query" if number % 3 == 0 else "database"
        rows.setdefault((photo.city, role), []).append((f"k_{number:05d}-{photo.city}", photo))
    for (city, role), entries in rows.items():
        lines = [",key,lon,lat,ca,captured_at,pano"]
        for index, (key, photo) in enumerate(entries):
            ca = "" if photo.heading is None else f"{photo.heading}.25"
            day = photo.captured
            date = f"{day[:4]}-{day[4:6]}-{day[6:]}" if day else "2014-08-02"
            panorama = index % 17 == 5 or index == len(entries) - 1
            lines.append(f"{index},{key},{photo.lon},{photo.lat},{ca},{date},{panorama}")
            path = f"train_val/{city}/{role}/images/{key}.jpg"
            paths[path] = photo
            _copy(photo, root / path)
        end = "\r\n" if role == "query" else "\n"
        (root / f"train_val/{city}/{role}/raw.csv").write_bytes(end.join(lines).encode())
    return paths


WRITERS: dict[str, Callable[[Path, list[RealPhoto]], dict[str, RealPhoto]]] = {
    "gsv_cities": write_gsv_cities,
    "sf_xl": write_sf_xl,
    "at_layout": write_pitts30k,
    "pitts30k_mat": write_pitts30k_mat,
    "msls": write_msls,
}


# --- twins: what the published scripts make of a tree ---


def twin_groups(
    kind: str, root: Path, rule: Rule, is_good: Callable[[Path], bool] = Path.is_file
) -> set[Group]:
    """Groups of classes of photos of a tree, one city (and so one UTM zone) at a time as the scripts are run.

    is_good: says of a file whether its photo counts; the scripts never look inside.
    """
    if kind == "gsv_cities":
        return twin_gsv(root, rule.min_photos, is_good)
    cities: dict[str, list[tuple[str, float, float, float]]] = defaultdict(list)
    for city, path, east, north, heading in _READERS[kind](root):
        if is_good(root / path):
            cities[city].append((path, east, north, heading))
    return {group for city, photos in cities.items() for group in _cosplace(city, photos, rule)}


def twin_gsv(root: Path, min_photos: int, is_good: Callable[[Path], bool]) -> set[Group]:
    """A place is a (city, place_id) with enough rows; a city is one group. Names are composed from text."""
    groups = set()
    for table in sorted((root / "Dataframes").glob("*.csv")):
        places: dict[int, set[str]] = defaultdict(set)
        for line in table.read_text().splitlines()[1:]:
            place, year, month, northdeg, city, lat, lon, panoid = line.split(",")
            stem = f"{city}_{int(place):07d}_{int(year):04d}_{int(month):02d}_{int(northdeg):03d}"
            name = f"{stem}_{lat}_{lon}_{panoid}.jpg"
            path = _on_disk(root / "Images" / city, name)
            if path is not None and is_good(path) and abs(float(lat)) <= 90:
                places[int(place)].add(path.relative_to(root).as_posix())
        kept = {
            (table.stem, place): frozenset(paths)
            for place, paths in places.items()
            if len(paths) >= min_photos
        }
        groups.add(frozenset(kept.items()))
    groups.discard(frozenset())
    return groups


def _cosplace(city: str, photos: list[tuple[str, float, float, float]], rule: Rule) -> Iterator[Group]:
    """train_dataset.py: walk the sorted paths, round, drop small classes, then form groups."""
    m, n, alpha, bins = rule.cell_m, rule.stride, rule.bin_deg, rule.bin_stride
    images_per_class: dict[tuple[int, int, int], list[str]] = defaultdict(list)
    for path, east, north, heading in sorted(photos):
        rounded = (int(east // m * m), int(north // m * m), int(heading // alpha * alpha))
        images_per_class[rounded].append(path)
    classes_per_group: dict[tuple[int, int, int], dict[Any, frozenset[str]]] = defaultdict(dict)
    for (e, t, h), paths in images_per_class.items():
        if len(paths) >= rule.min_photos:
            group = (e % (m * n) // m, t % (m * n) // m, h % (alpha * bins) // alpha)
            classes_per_group[group][city, e, t, h] = frozenset(paths)
    for classes in classes_per_group.values():
        yield frozenset(classes.items())


def _read_sf_xl(root: Path) -> Iterator[tuple[str, str, float, float, float]]:
    lines = (root / "processed/train_images_paths.txt").read_text().splitlines()
    for line in dict.fromkeys(lines):
        fields = line.rsplit("/", 1)[-1].split("@")
        if len(fields) == 16 and fields[9]:
            east, north, heading = float(fields[1]), float(fields[2]), float(fields[9])
            yield fields[3], f"processed/train/{line}", east, north, heading


def _read_pitts30k(root: Path) -> Iterator[tuple[str, str, float, float, float]]:
    for file in sorted(root.glob("images/train/*/*.jpg")):
        fields = file.name.split("@")
        if len(fields) == 16 and fields[8]:
            heading = int(fields[8]) % 12 * 30
            yield fields[3], file.relative_to(root).as_posix(), float(fields[1]), float(fields[2]), heading


def _read_pitts30k_mat(root: Path) -> Iterator[tuple[str, str, float, float, float]]:
    table = scipy.io.loadmat(root / "datasets/pitts30k_train.mat")["dbStruct"].item()
    for prefix, names, metres in (("", table[1], table[2]), ("queries_real/", table[3], table[4])):
        for cell, (east, north) in zip(names, metres.T, strict=True):
            path = prefix + cell[0].item()
            if "_yaw" in path:
                yaw = int(path.split("_yaw")[1].split(".")[0])
                yield "17", path, east, north, (yaw - 1) * 30


def _read_msls(root: Path) -> Iterator[tuple[str, str, float, float, float]]:
    """As preprocess_msls.py, which writes east and north of raw.csv's degrees with two decimals.

    Differs in the flag of a panorama, which the script compares with "True\\n", and in photos without a compass
    direction, which it cannot read.
    """
    for table in sorted(root.glob("train_val/*/*/raw.csv")):
        if table.parent.parent.name in ("cph", "sf"):  # the cities of val
            continue
        for line in table.read_bytes().decode().splitlines()[1:]:
            _, key, lon, lat, ca, _, panorama = line.split(",")
            file = table.parent / "images" / f"{key}.jpg"
            if panorama.strip() == "True" or not ca or not lat:
                continue
            east, north, _, _ = utm(float(lat), float(lon))
            city = table.parent.parent.name
            yield city, file.relative_to(root).as_posix(), round(east, 2), round(north, 2), int(float(ca))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, str, float, float, float]]]] = {
    "sf_xl": _read_sf_xl,
    "at_layout": _read_pitts30k,
    "pitts30k_mat": _read_pitts30k_mat,
    "msls": _read_msls,
}


# --- ours, in the same terms ---


def our_groups(kind: str, rows: list[dict[str, Any]]) -> set[Group]:
    """Rows with path, city, domain, place and cell (of a listing with places, or of images/v1) as groups of classes."""
    classes: dict[str, dict[Any, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        if row["place_id"] is not None:
            *_, last = row["place_id"].split("/")
            if kind == "gsv_cities":
                key: tuple[Any, ...] = (row["city"], int(last))
            else:
                zone, east, north, heading = last.split("-")
                key = (row["city"] if kind == "msls" else zone[:2], int(east), int(north), int(heading))
            classes[row["domain"]][key].add(row["path"])
    return {frozenset((key, frozenset(paths)) for key, paths in group.items()) for group in classes.values()}


def shuffle_lines(root: Path, seed: int) -> None:
    """Put the rows of every table and list of a tree into another order; headers and index columns stay in place."""
    shuffler = random.Random(seed)
    for file in [*root.rglob("*.csv"), *root.rglob("*.txt")]:
        text = file.read_bytes().decode()
        end = "\r\n" if "\r\n" in text else "\n"
        lines = text.split(end)
        lines = lines[:-1] if lines[-1] == "" else lines
        first = 1 if file.suffix == ".csv" else 0
        rows = lines[first:]
        shuffler.shuffle(rows)
        if lines[0].startswith(","):  # an index column counts on
            rows = [f"{index},{row.split(',', 1)[1]}" for index, row in enumerate(rows)]
        file.write_bytes((end.join(lines[:first] + rows) + end).encode())


def _copy(photo: RealPhoto, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(photo.file.read_bytes())


def _on_disk(folder: Path, name: str) -> Path | None:
    """The file of this name, whatever the case of its extension."""
    for file in (folder / name, folder / f"{name.removesuffix('.jpg')}.JPG"):
        if file.is_file():
            return file
    return None


def opens(file: Path) -> bool:
    """Whether a file is a whole image."""
    try:
        with PIL.Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True
