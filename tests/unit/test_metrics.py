"""Metrics against slow, obvious twins: positives of every rule, recall, the Wilson interval."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from placeray.errors import ConfigError, DataError
from placeray.geo import from_utm, to_utm
from placeray.metrics import (
    ExactRule,
    FramesRule,
    RadiusRule,
    first_hits,
    is_right,
    parse_rule,
    positives,
    recall_at_k,
    wilson_interval,
)


def placed(lat, lon, zone=None) -> pa.Table:
    """A table with the position columns of photos at these degrees; NaN is a photo without position."""
    lat, lon = np.asarray(lat, float), np.asarray(lon, float)
    known = ~np.isnan(lat)
    east, north, zones = np.full(len(lat), np.nan), np.full(len(lat), np.nan), np.full(len(lat), "", "U4")
    if known.any():
        east[known], north[known], zones[known] = to_utm(lat[known], lon[known], zone)
    nulls = ~known
    return pa.table(
        {
            "lat": pa.array(lat, mask=nulls),
            "lon": pa.array(lon, mask=nulls),
            "utm_east": pa.array(east, mask=nulls),
            "utm_north": pa.array(north, mask=nulls),
            "utm_zone": pa.array(zones.tolist(), pa.string(), mask=nulls),
            "frame": pa.nulls(len(lat), pa.int64()),
        }
    )


def flat(east, north, zone="10S") -> pa.Table:
    lat, lon = from_utm(np.asarray(east, float), np.asarray(north, float), zone)
    return pa.table(
        {"lat": lat, "lon": lon, "utm_east": np.asarray(east, float), "utm_north": np.asarray(north, float),
         "utm_zone": [zone] * len(lat), "frame": pa.nulls(len(lat), pa.int64())}
    )  # fmt: skip


def framed(frames) -> pa.Table:
    return pa.table({"frame": pa.array(frames, pa.int64())})


def test_radius_is_inclusive_and_counts_decimals_not_float_noise():
    """8.8 m east and 23.4 m north are 25 m on paper, but 25.0000000004 m between these float64 coordinates."""
    east, north = 585308.62, 6565469.05
    database = flat([585317.42, east + 25.0, east + 25.01], [6565492.45, north, north])
    assert math.hypot(585317.42 - east, 6565492.45 - north) > 25.0
    assert positives(RadiusRule(radius_m=25.0), database, flat([east], [north]))[0].tolist() == [0, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 60.0))
def test_radius_equals_all_pairs(seed, radius_m):
    draw = np.random.default_rng(seed)
    east, north = draw.uniform(5e5, 5e5 + 200, 60), draw.uniform(4e6, 4e6 + 200, 60)
    asked_e, asked_n = draw.uniform(5e5, 5e5 + 200, 20), draw.uniform(4e6, 4e6 + 200, 20)
    found = positives(RadiusRule(radius_m=radius_m), flat(east, north), flat(asked_e, asked_n))
    for q in range(20):
        slow = [i for i in range(60) if math.hypot(east[i] - asked_e[q], north[i] - asked_n[q]) <= radius_m]
        assert found[q].tolist() == slow


@pytest.mark.parametrize(
    ("lat", "lon", "other"),
    [
        (37.7, -120.0, "zone 10 | 11"),
        (0.0, 9.0, "equator"),
        (-33.0, 180.0, "antimeridian, zone 60 | 1"),
        (75.0, 9.0, "Svalbard, zone 31 | 33"),
        (48.0, 12.3, "band T | U of one zone"),
    ],
)
def test_radius_reaches_across_grids(lat, lon, other):
    """Photos 10 m apart on two sides of a border are right answers, photos 300 m apart are not."""
    step = 5 / 111_195
    if other == "equator" or "band" in other:
        near, far, query = (lat - step, lon), (lat - 60 * step, lon), (lat + step, lon)
    else:
        step /= math.cos(math.radians(lat))
        near, far, query = (lat, lon - step), (lat, lon - 60 * step), (lat, (lon + step + 180) % 360 - 180)
    database = placed([near[0], far[0], float("nan")], [near[1], far[1], float("nan")])
    queries = placed([query[0], float("nan")], [query[1], float("nan")])
    zones = database.column("utm_zone")[0].as_py(), queries.column("utm_zone")[0].as_py()
    assert zones[0] != zones[1] or "band" in other, other
    found = positives(RadiusRule(), database, queries)
    assert [rows.tolist() for rows in found] == [[0], []]


def test_equal_eastings_of_far_zones_are_not_near():
    database, queries = flat([500000.0], [4e6], "10S"), flat([500000.0], [4e6], "14S")
    assert positives(RadiusRule(), database, queries)[0].tolist() == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=40),
    st.lists(st.one_of(st.none(), st.integers(0, 30)), min_size=1, max_size=10),
    st.integers(0, 5),
)
def test_frames_equal_all_pairs(database, asked, window):
    found = positives(FramesRule(window=window), framed(database), framed(asked))
    exact = positives(ExactRule(), framed(database), framed(asked))
    for q, frame in enumerate(asked):
        gaps = [None if frame is None or other is None else abs(other - frame) for other in database]
        assert found[q].tolist() == [i for i, gap in enumerate(gaps) if gap is not None and gap <= window]
        assert exact[q].tolist() == [i for i, gap in enumerate(gaps) if gap == 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 15))
def test_recall_equals_the_loop(seed, num_queries, depth):
    draw = np.random.default_rng(seed)
    ranked = np.stack([draw.permutation(15)[:depth] for _ in range(num_queries)])
    ranked[draw.random(ranked.shape) < 0.2] = -1
    right = [np.flatnonzero(draw.random(15) < 0.15).astype(np.int64) for _ in range(num_queries)]
    ks = sorted({1, depth, (depth + 1) // 2})
    recall = recall_at_k(ranked, right, ks)
    for place, k in enumerate(ks):
        hits = [bool(set(ranked[q, :k].tolist()) & set(right[q].tolist())) for q in range(num_queries)]
        known = [hit for hit, rows in zip(hits, right, strict=True) if len(rows)]
        assert recall.all[place] == pytest.approx(sum(hits) / num_queries)
        assert recall.at(k) == recall.all[place]
        if known:
            assert recall.with_positive[place] == pytest.approx(sum(known) / len(known))
        else:
            assert math.isnan(recall.with_positive[place])
    assert (recall.num_queries, recall.num_with_positive) == (
        num_queries,
        sum(len(rows) > 0 for rows in right),
    )
    slow = [[row >= 0 and row in right[q] for row in ranked[q]] for q in range(num_queries)]
    assert is_right(ranked, right).tolist() == slow
    assert first_hits(ranked, right).tolist() == [hits.index(True) if any(hits) else depth for hits in slow]


def test_padding_is_never_right_even_where_row_numbers_collide():
    """-1 of query 1 must not be taken for the last row of query 0."""
    assert first_hits(np.array([[0], [-1]]), [np.array([2]), np.array([0])]).tolist() == [1, 1]


def test_recall_refuses_what_was_not_ranked():
    with pytest.raises(DataError, match=r"recall at \[1, 5\] needs 1 <= k <= 3"):
        recall_at_k(np.zeros((2, 3), np.int64), [np.array([0])] * 2, (1, 5))
    with pytest.raises(DataError, match="no queries"):
        recall_at_k(np.zeros((0, 3), np.int64), [], (1,))


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_interval_equals_scipy(count, share, level):
    hits = round(share * count)
    low, high = wilson_interval(hits / count, count, level)
    expected = binomtest(hits, count).proportion_ci(level, method="wilson")
    # 1e-9: both evaluate the closed formula in float64, in a different order.
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_a_rule_is_read_from_a_manifest():
    assert parse_rule({"kind": "frames", "window": 3}) == FramesRule(window=3)
    assert parse_rule({"kind": "radius", "radius_m": 25}) == RadiusRule()
    with pytest.raises(ConfigError, match=r"positive rule .*cubit"):
        parse_rule({"kind": "cubit"})


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="'frame'"):
        positives(FramesRule(), pa.table({"lat": [1.0]}), framed([1]))
