"""Localization with a small real model: photos to positions, confidence, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest

from placeray.errors import DataError, MapError, StorageError
from placeray.jobspecs.localize import LocalizeJob
from placeray.localization import LocalizeConfig, estimate_position, find_photos, localize
from placeray.model.describe import describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.retrieval.filters import Circle, Filter


def test_position_is_the_weighted_mean_of_agreeing_matches():
    lat = np.array([37.0, 37.0002, 37.0, 38.0, np.nan])
    lon = np.array([-122.0, -122.0, -122.0002, -122.0, np.nan])
    similarity = np.array([0.9, 0.9, 0.9, 0.89, np.nan])
    spot = estimate_position(lat, lon, similarity, LocalizeConfig(cluster_m=50))
    assert spot is not None
    assert spot.matches == 3  # one is 111 km off, one has no position
    assert spot.lat == pytest.approx(37.0002 / 3 + 37.0 * 2 / 3, abs=1e-9)
    assert spot.lon == pytest.approx(-122.0002 / 3 - 122.0 * 2 / 3, abs=1e-9)
    slow = [haversine(spot.lat, spot.lon, lat[i], lon[i]) for i in range(3)]
    assert spot.spread_m == pytest.approx(sum(slow) / 3, rel=1e-6)


def haversine(lat1, lon1, lat2, lon2) -> float:
    one, two = math.radians(lat1), math.radians(lat2)
    half = math.sin((two - one) / 2) ** 2
    half += math.cos(one) * math.cos(two) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(half))


def test_less_similar_matches_weigh_less_and_the_date_line_does_not_break_the_mean():
    lat, lon = np.array([0.0, 0.0]), np.array([179.9999, -179.9999])
    even = estimate_position(lat, lon, np.array([0.9, 0.9]), LocalizeConfig())
    assert even is not None
    assert abs(even.lon) == pytest.approx(180.0, abs=1e-9)
    tilted = estimate_position(lat, lon, np.array([0.9, 0.5]), LocalizeConfig(sharpness=20))
    assert tilted is not None
    assert tilted.lon == pytest.approx(179.9999, abs=1e-6)
    assert (
        estimate_position(np.array([np.nan]), np.array([np.nan]), np.array([0.9]), LocalizeConfig()) is None
    )
    assert estimate_position(np.array([]), np.array([]), np.array([]), LocalizeConfig()) is None


def test_photos_are_found_in_folders_and_alone(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/2.JPG", "a/1.png", "a/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.rsplit("/", 1)[1] for path in find_photos(str(tmp_path / "a"))] == ["1.png", "2.JPG"]
    assert find_photos(str(tmp_path / "a/2.JPG")) == [str(tmp_path / "a/2.JPG")]
    with pytest.raises(StorageError, match="no such file"):
        find_photos(str(tmp_path / "a/3.jpg"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no photo"):
        find_photos(str(tmp_path / "empty"))


class Always:
    """A calibration that states what it was shown."""

    depth = 12

    def __init__(self):
        self.seen = None

    def probability(self, similarity, lat, lon, frame):
        self.seen = (similarity, lat, lon, frame)
        return np.where(np.isnan(similarity[:, 0]), np.nan, 0.75)


def test_a_photo_of_the_map_is_found_at_its_place(small_model, make_photo, photo_map):
    """The map holds these very photos, so each must be its own best match."""
    place_map, _ = photo_map
    asked = [0, 7, 14]
    found = localize([make_photo(seed) for seed in asked], small_model, place_map)
    for seed, item in zip(asked, found, strict=True):
        best = item.matches[0]
        assert best.image_id == f"m{seed:04d}"
        assert best.similarity == pytest.approx(1.0, abs=0.01)  # the map holds int8 of the same descriptor
        assert best.distance == 0
        assert item.position is not None
        assert (item.position.matches, item.position.spread_m) == (1, None)  # photos are 300 m apart
        assert (item.confidence, best.confidence) == (None, None)  # nobody calibrated this map
        assert len(item.matches) == 5
    json.dumps([dataclasses.asdict(item) for item in found], allow_nan=False)


def test_confidence_sees_enough_matches_and_belongs_to_the_best(small_model, make_photo, photo_map, tmp_path):
    place_map, _ = photo_map
    file = tmp_path / "asked.jpg"
    file.write_bytes(make_photo(3))
    calibration = Always()
    with pytest.raises(MapError, match="calibration looks at 12 matches, shortlist=4 has fewer"):
        localize([str(file)], small_model, place_map, calibration, LocalizeConfig(top_k=2, shortlist=4))
    config = LocalizeConfig(top_k=2, shortlist=12)
    (item,) = localize([str(file)], small_model, place_map, calibration, config)
    assert item.photo == str(file)
    assert [match.confidence for match in item.matches] == [0.75, None]
    assert item.confidence == 0.75
    assert calibration.seen[0].shape == (1, 12)
    assert np.isfinite(calibration.seen[1]).all()


def test_what_cannot_be_localized_is_named(small_model, make_photo, photo_map, tmp_path):
    place_map, _ = photo_map
    with pytest.raises(DataError, match="photo 2: cannot decode"):
        localize([make_photo(0), b"no picture"], small_model, place_map)
    with pytest.raises(StorageError, match="gone"):
        localize([str(tmp_path / "gone.jpg")], small_model, place_map)
    other = dataclasses.replace(small_model, model_id="0" * 64)
    with pytest.raises(MapError, match="model_id"):
        localize([make_photo(0)], other, place_map)


def test_a_calibration_is_for_searches_of_the_whole_map():
    asked = {"photos": ["a.jpg"], "checkpoint": "c", "map": "m", "calibration": "report"}
    LocalizeJob.model_validate(asked)
    for narrowed in ({"one_per_panorama": True}, {"within": {"heading_deg": 10}}):
        with pytest.raises(ValueError, match="searches of the whole map"):
            LocalizeJob.model_validate({**asked, "localize": narrowed})


def test_the_shortlist_is_the_one_asked_for(small_model, make_photo, photo_map):
    """Of five candidates the position cannot be made of ten, and the matches are those that `search` finds."""
    place_map, _ = photo_map
    pixels = decode_to_input(make_photo(1), PreprocessConfig(size_px=56))
    described = describe(small_model.model, pixels[None])
    (item,) = localize([make_photo(1)], small_model, place_map, config=LocalizeConfig(top_k=5, shortlist=5))
    found = place_map.search(described.codes, described.float, top_k=5, shortlist=5)
    expected = place_map.records(found.rows[0], ["image_id"])["image_id"].to_pylist()
    assert [match.image_id for match in item.matches] == expected


def test_a_map_smaller_than_asked_gives_what_it_has(small_model, make_photo, photo_map):
    place_map, _ = photo_map
    (item,) = localize([make_photo(1)], small_model, place_map, config=LocalizeConfig(top_k=50, shortlist=50))
    assert len(item.matches) == len(place_map) == 20


def test_only_photos_that_fulfil_the_filter_answer(small_model, make_photo, photo_map):
    """A prior of 50 m holds one photo; one far from the map holds none, which is an answer too."""
    place_map, _ = photo_map
    at = place_map.records(np.array([4]), ["image_id", "lat", "lon"]).to_pylist()[0]
    near = Filter(area=Circle(lat=at["lat"], lon=at["lon"], radius_m=50))
    (item,) = localize([make_photo(1)], small_model, place_map, config=LocalizeConfig(within=near))
    assert [match.image_id for match in item.matches] == [at["image_id"]]
    far = Filter(area=Circle(lat=-45.0, lon=0.0, radius_m=50))
    (item,) = localize([make_photo(1)], small_model, place_map, config=LocalizeConfig(within=far))
    assert (item.matches, item.position) == ((), None)
