"""Many queries: the answers are those of PlaceMap.search, laid out as answers/v1."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from placeray import storage
from placeray.contracts import validate_table
from placeray.errors import MapError
from placeray.geo import distance_m
from placeray.retrieval.filters import Circle, Filter
from placeray.retrieval.many import SearchConfig, answer_queries, without_position
from placeray.retrieval.place_map import PlaceMap

COUNT = 90


@pytest.fixture(scope="module")
def town(make_descriptors, make_map, draw_random):
    """A map of photos 20 m apart, the last without a position, three of a panorama; its own photos as queries."""
    rng = np.random.default_rng(5)
    codes, floats = draw_random(rng, COUNT, 128, 16)
    lat = np.append(48.0 + np.arange(COUNT - 1) * 20 / 111_195, np.nan)
    lon = np.append(np.full(COUNT - 1, 11.0), np.nan)
    more = {
        "heading_deg": [None if i % 5 == 0 else float(i) for i in range(COUNT)],
        "captured": [None if i % 7 == 0 else f"20{10 + i % 10}" for i in range(COUNT)],
        "panorama_id": [f"pano-{i // 3}" for i in range(COUNT)],
    }
    folder = make_descriptors(codes, floats, lat=lat, lon=lon, more=more)
    table = pa.concat_tables(
        [
            storage.read_table(storage.join(folder, file["path"]))
            for file in storage.read_manifest(folder)["files"]
        ]
    )
    return make_map(folder, rows_per_shard=25), table, codes, floats


@pytest.mark.parametrize("shortlist", [3, 40, None])
def test_answers_are_those_of_the_search_in_batches_of_any_size(town, shortlist):
    uri, queries, codes, _ = town
    floats = np.array(queries["descriptor"].to_pylist(), np.float32)
    with PlaceMap.open(uri, num_threads=1) as place_map:
        tables = [
            answer_queries(queries, place_map, SearchConfig(top_k=3, shortlist=shortlist, batch_size=size))
            for size in (7, 256)
        ]
        slow = place_map.search(codes, floats, top_k=3, shortlist=shortlist)
        names = place_map.rows(["image_id"])["image_id"].to_pylist()
    assert tables[0].equals(tables[1])
    validate_table(tables[0], "answers/v1")
    assert tables[0]["image_id"].equals(queries["image_id"])
    for q, found in enumerate(tables[0]["answers"].to_pylist()):
        assert [answer["image_id"] for answer in found] == [names[row] for row in slow.rows[q]]
        assert [answer["hamming"] for answer in found] == slow.hamming[q].tolist()
        np.testing.assert_array_equal(
            np.array([answer["similarity"] for answer in found], np.float32), slow.similarity[q]
        )


def test_what_is_known_of_a_photo_travels_with_it_and_the_rest_is_null(town):
    uri, queries, _, _ = town
    with PlaceMap.open(uri, num_threads=1) as place_map:
        rows = answer_queries(queries, place_map, SearchConfig(top_k=1)).to_pylist()
    for asked, row in zip(queries.to_pylist(), rows, strict=True):
        (best,) = row["answers"]  # its own photo
        for name in ("image_id", "lat", "lon", "heading_deg", "captured", "source_uri"):
            assert best[name] == asked[name]
        assert row["confidence"] is None
        if asked["lat"] is None:
            assert row["estimated_lat"] is None
            assert row["position_matches"] is None
        else:
            metres = distance_m(row["estimated_lat"], row["estimated_lon"], asked["lat"], asked["lon"])
            assert metres <= 50


def test_a_prior_keeps_answers_near_and_a_query_without_position_asks_the_whole_map(town):
    uri, queries, _, _ = town
    assert without_position(queries) == 1
    with PlaceMap.open(uri, num_threads=1) as place_map:
        rows = answer_queries(queries, place_map, SearchConfig(top_k=50, near_m=65)).to_pylist()
    for asked, row in zip(queries.to_pylist()[:-1], rows, strict=False):
        metres = [distance_m(a["lat"], a["lon"], asked["lat"], asked["lon"]) for a in row["answers"]]
        assert max(metres) <= 65
        north = round((asked["lat"] - 48.0) * 111_195 / 20)
        assert len(metres) == min(north + 3, COUNT - 2) - max(north - 3, 0) + 1
    assert len(rows[-1]["answers"]) == 50


def test_an_area_without_photos_gives_empty_answers(town):
    uri, queries, _, _ = town
    config = SearchConfig.model_validate({"filter": {"area": {"lat": 10, "lon": 10, "radius_m": 5}}})
    with PlaceMap.open(uri, num_threads=1) as place_map:
        table = answer_queries(queries.slice(0, 4), place_map, config)
        none = answer_queries(queries.slice(0, 0), place_map, config)
    assert table["answers"].to_pylist() == [[]] * 4
    assert table["estimated_lat"].null_count == 4
    assert none.num_rows == 0
    validate_table(none, "answers/v1")


def test_one_photo_of_a_panorama_and_exhaustive(town):
    uri, queries, _, _ = town
    with PlaceMap.open(uri, num_threads=1) as place_map:
        rows = answer_queries(queries, place_map, SearchConfig(top_k=8, one_per_panorama=True)).to_pylist()
        exhaustive = answer_queries(queries, place_map, SearchConfig(top_k=4, exhaustive=True)).to_pylist()
        area = Filter(area=Circle(lat=48.0, lon=11.0, radius_m=400))
        within = {
            row["image_id"]
            for row in place_map.rows().filter(pa.array(place_map.fulfilling(area))).to_pylist()
        }
        narrowed = answer_queries(
            queries, place_map, SearchConfig(top_k=4, exhaustive=True, filter=area)
        ).to_pylist()
    for row in rows:
        panoramas = [int(answer["image_id"][-6:]) // 3 for answer in row["answers"]]
        assert len(set(panoramas)) == len(panoramas) == 8
    assert all(row["answers"][0]["image_id"] == row["image_id"] for row in exhaustive)
    assert within
    assert all(answer["image_id"] in within for row in narrowed for answer in row["answers"])


class Pretended:
    """A calibration that says how many matches it saw."""

    depth = 20

    def probability(self, similarity, lat, lon, frame):
        return np.full(len(similarity), similarity.shape[1] / 100)


def test_a_calibration_sees_its_depth_whatever_is_returned(town):
    uri, queries, _, _ = town
    with PlaceMap.open(uri, num_threads=1) as place_map:
        table = answer_queries(queries.slice(0, 3), place_map, SearchConfig(top_k=2), Pretended())
        assert table["confidence"].to_pylist() == [0.2] * 3
        assert [len(found) for found in table["answers"].to_pylist()] == [2] * 3
        with pytest.raises(MapError, match="looks at 20 matches, shortlist=5 has fewer"):
            answer_queries(queries.slice(0, 3), place_map, SearchConfig(top_k=2, shortlist=5), Pretended())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_k": 9, "shortlist": 5}, "shortlist=5 is smaller than top_k=9"),
        ({"near_m": 9, "filter": {"area": {"lat": 1, "lon": 1, "radius_m": 5}}}, "give one"),
        ({"near_m": 9, "mode": "ivf"}, "not with mode: ivf"),
        ({"near_m": float("inf")}, "finite number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        SearchConfig.model_validate(values)
