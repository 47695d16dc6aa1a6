"""Heat maps: shares divide the descriptor exactly, and the pictures show what was asked for."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from placeray.model.checkpoint import save_checkpoint
from placeray.model.gem import gem_shares, generalised_mean
from placeray.model.heatmaps import PANEL_PX, TITLE_PX, HeatMaps, draw_heat_maps, heat_maps

CARD = {
    "preprocessing": "platform-56",
    "recipe": None,
    "data_fingerprint": None,
    "metrics": {},
    "created_at": "2025-01-01T00:00:00+00:00",
}


def test_gem_shares_leave_nothing_over() -> None:
    """They are feature times derivative, and sum to the whole."""
    torch.manual_seed(0)
    features = torch.rand(2, 9, 5).add(0.1).requires_grad_()
    p, weight = torch.tensor([2.7]), torch.randn(2, 5)
    whole = (weight * generalised_mean(features, p)).sum(dim=1)
    shares = gem_shares(features, p, weight)
    torch.testing.assert_close(shares.sum(dim=1), whole)
    (gradient,) = torch.autograd.grad(whole.sum(), features)
    torch.testing.assert_close(shares, (features * gradient).sum(dim=2))


@torch.no_grad()
def test_shares_of_a_gem_head_sum_to_the_length_of_the_descriptor(make_model, images) -> None:
    model = make_model("gem", None)
    head = model.float_branch.head
    head.reduce.bias.zero_()
    tokens = model.features(images)[0].float
    shares = head.patch_shares(tokens, (4, 4))
    features = torch.nn.functional.normalize(head.project(tokens), dim=-1)
    length = head.reduce(generalised_mean(features, head.p)).norm(dim=1)
    torch.testing.assert_close(shares.sum(dim=1), length)


@torch.no_grad()
def test_boq_shares_are_attention_and_salad_shares_are_what_escapes_the_dustbin(make_model, images) -> None:
    boq, salad = make_model("boq", None), make_model("salad", None)
    attention = boq.float_branch.head.patch_shares(boq.features(images)[0].float, (4, 4))
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(8))
    kept = salad.float_branch.head.patch_shares(salad.features(images)[0].float, (4, 4))
    assert kept.shape == (8, 16)
    assert 0 <= kept.min() < kept.max() <= 1 + 1e-5


@pytest.mark.parametrize(("kind", "bits"), [("gem", 16), ("boq", None), ("salad", 16), (None, 16)])
def test_every_branch_has_a_map_of_its_own(kind, bits, make_model) -> None:
    maps = heat_maps(make_model(kind, bits), torch.randn(2, 3, 56, 70))
    assert (maps.float is None) == (kind is None)
    assert (maps.code is None) == (bits is None)
    for values in filter(lambda values: values is not None, maps):
        assert values.shape == (2, 4, 5)
        np.testing.assert_allclose(values.mean(axis=(1, 2)), 1, rtol=1e-5)


@torch.no_grad()
def test_the_map_is_hot_where_the_photo_differs(make_model) -> None:
    """Rows and columns are not mixed up: one odd patch in a flat photo is the odd patch of the frozen map."""
    image = torch.zeros(1, 3, 56, 56)
    image[:, :, 14:28, 42:56] = torch.randn(3, 14, 14, generator=torch.Generator().manual_seed(0))
    model = make_model("gem", None)
    model.backbone.vit.pos_embed.zero_()
    frozen = heat_maps(model, image).frozen[0]
    assert np.unravel_index(np.abs(frozen - np.median(frozen)).argmax(), frozen.shape) == (1, 3)


def test_the_job_writes_a_sheet_per_photo(
    make_model, tmp_path: Path, monkeypatch, repository, capsys
) -> None:
    save_checkpoint(str(tmp_path / "checkpoint"), make_model("gem", 16), CARD)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photos" / "wall.png")
    (tmp_path / "photos" / "bad.jpg").write_text("no photo")
    (tmp_path / "photos" / "gone.jpg").symlink_to("nowhere.jpg")
    values = {
        "checkpoint": tmp_path / "checkpoint",
        "inputs": tmp_path / "photos",
        "output": tmp_path / "maps",
    }
    arguments = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["heatmap.py", *arguments])
    runpy.run_path(str(repository / "jobs" / "heatmap.py"), run_name="__main__")
    assert "read 3, kept 1, rejected 2" in capsys.readouterr().out
    (sheet,) = (tmp_path / "maps").iterdir()
    assert sheet.name == "0002-wall.png"
    assert Image.open(sheet).size == (4 * PANEL_PX, 240 + TITLE_PX)  # photo, frozen, float, code


def test_the_job_fails_when_no_photo_can_be_drawn(
    make_model, tmp_path: Path, monkeypatch, repository, capsys
) -> None:
    save_checkpoint(str(tmp_path / "checkpoint"), make_model("gem", 16), CARD)
    (tmp_path / "bad.jpg").write_text("no photo")
    values = {
        "checkpoint": tmp_path / "checkpoint",
        "inputs": tmp_path / "bad.jpg",
        "output": tmp_path / "maps",
    }
    arguments = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", ["heatmap.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(repository / "jobs" / "heatmap.py"), run_name="__main__")
    assert ended.value.code == 1
    said = f"no photo of {tmp_path}/bad.jpg could be drawn; the first: cannot decode the image"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("width", "height", "drawn"), [(1, 300, 3 * PANEL_PX), (300, 1, 1), (90, 210, 747), (80, 60, 240)]
)
def test_a_sheet_is_no_taller_than_three_photos_are_wide(width: int, height: int, drawn: int) -> None:
    photo = Image.new("RGB", (width, height), "grey")
    sheet = draw_heat_maps(photo, maps_of(np.ones((1, 2, 2), np.float32)), 0)
    assert sheet.size == (2 * PANEL_PX, drawn + TITLE_PX)


def test_a_sheet_shows_the_hottest_patch_red_and_the_coldest_blue() -> None:
    values = np.zeros((1, 2, 2), np.float32)
    values[0, 0, 1] = 1
    sheet = np.asarray(draw_heat_maps(Image.new("RGB", (64, 64), "grey"), maps_of(values), 0)).astype(int)
    size = PANEL_PX
    red, blue = sheet[TITLE_PX + 20, 2 * size - 20], sheet[TITLE_PX + size - 20, size + 20]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0]


def maps_of(values: np.ndarray) -> HeatMaps:
    return HeatMaps(values, None, None)
