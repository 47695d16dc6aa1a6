"""Exhaustive search gives equal photos by row, whatever the batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from placeray.retrieval.place_map import PlaceMap

Make = Callable[..., Any]


@pytest.mark.parametrize("descriptor_type", ["int8", "float16", "float32"])
def test_equal_photos_come_by_row_in_every_batch(
    make_descriptors: Make, make_map: Make, draw_random: Make, descriptor_type: str
) -> None:
    codes, floats = draw_random(np.random.default_rng(0), 300, 64, 96)
    floats[:] = floats[0]
    root = make_map(make_descriptors(codes, floats), descriptor_type=descriptor_type)
    queries = draw_random(np.random.default_rng(1), 40, 64, 96)[1]
    with PlaceMap.open(root) as place_map:
        for size in (1, 2, 7, 12, 17, 40):
            found = place_map.search(None, queries[:size], top_k=5, exhaustive=True)
            assert (found.rows == np.arange(5)).all(), size
