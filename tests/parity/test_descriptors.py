"""Descriptors and codes equal those of the published code."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from placeray.model.preprocess import PreprocessConfig, to_input
from placeray.model.selavpr import SelaVPR
from placeray.model.sign import pack_bits

EXPECTED = Path(__file__).parent / "fixtures"

# A right implementation is within 3e-8; a wrong GeM eps moves descriptors by 4e-6, everything else by more.
TOLERANCE = 1e-6

slow = pytest.mark.slow

CASES = [
    ("base_rerank", "t112"),
    ("base_rerank", "t224"),
    ("base_rerank", "t322"),
    ("base_rerank", "t518"),
    ("base_rerank", "down480x640"),
    ("base_rerank", "down480x640@noaa"),
    pytest.param("base_rerank", "up200x300", marks=slow),
    pytest.param("base_rerank", "up200x300@noaa", marks=slow),
    ("base_boq", "t112"),
    pytest.param("base_boq", "down480x640", marks=slow),
    pytest.param("base_boq", "t224", marks=slow),
    pytest.param("base_boq", "t322", marks=slow),
    pytest.param("base_boq", "down480x640@noaa", marks=slow),
    pytest.param("base_boq", "up200x300", marks=slow),
    pytest.param("base_boq", "up200x300@noaa", marks=slow),
]


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_descriptors_are_the_published_ones(
    variant: str, case: str, detgen: ModuleType, load_variant: Callable[[str], SelaVPR]
) -> None:
    expected = np.load(EXPECTED / f"expected_{variant}.npz")
    model = load_variant(variant)
    given = detgen.case_input(variant, case.removesuffix("@noaa"))
    if given.dtype == np.uint8:  # one raw photo, through the published evaluation's preprocessing
        config = PreprocessConfig(size_px=322, order="reference", antialias=not case.endswith("@noaa"))
        batch = to_input(Image.fromarray(given), config)[None]
    else:
        batch = torch.from_numpy(given)

    with torch.inference_mode():
        found = model(batch)

    assert found.float is not None
    np.testing.assert_allclose(found.float.numpy(), expected[f"{case}/float"], rtol=0, atol=TOLERANCE)
    if variant == "base_boq":
        assert found.code is None
        return
    np.testing.assert_allclose(found.code_logits.numpy(), expected[f"{case}/logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(pack_bits(found.code), expected[f"{case}/codes"])


def test_constants_that_the_outputs_hardly_show(load_variant: Callable[[str], SelaVPR]) -> None:
    """A LayerNorm eps of 1e-5 moves descriptors by 5e-8 only, so it is looked at directly."""
    model = load_variant("base_rerank")
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 12 + 1
    assert {norm.eps for norm in norms} == {1e-6}
