"""Where a model looks: heat maps of the frozen backbone, the float branch and the code over a photo.

Source: Figure 1 of the SelaVPR++ paper shows such maps without saying how they are made; here a patch counts by its
share in the descriptor, as its head divides it (`patch_shares`).
"""

from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from placeray.model.gem import gem_shares, generalised_mean
from placeray.model.selavpr import SelaVPR
from placeray.model.side_branch import SideBranch

# GeM's exponent before training, for the backbone, which has no head of its own.
PLAIN_EXPONENT = 3.0

PANEL_PX = 320
MAX_HEIGHT_PX = 3 * PANEL_PX  # a column of 300 pixels is a photo too, and would be drawn 96,000 pixels tall
TITLE_PX = 22
STRENGTH = 0.55  # of the colours over the photo


class HeatMaps(NamedTuple):
    """(B, rows, columns) float32, 1 where a patch counts as much as the average one; None for an absent branch."""

    frozen: NDArray[np.float32]
    float: NDArray[np.float32] | None
    code: NDArray[np.float32] | None


TITLES = {"frozen": "frozen backbone", "float": "float branch", "code": "code"}


@torch.inference_mode()
def heat_maps(model: SelaVPR, images: Tensor) -> HeatMaps:
    """Where a model in eval mode looks, for (B, 3, H, W) normalised images."""
    backbone = model.backbone
    features, grid = model.features(images)
    *_, last = backbone.streams(images)
    frozen = _frozen_shares(backbone.norm(last)[:, backbone.num_prefix_tokens :])
    return HeatMaps(
        _as_map(frozen, grid),
        _branch_map(model.float_branch, features.float, grid),
        _branch_map(model.code_branch, features.code, grid),
    )


def draw_heat_maps(photo: Image.Image, maps: HeatMaps, index: int) -> Image.Image:
    """The photo and its heat maps side by side, with titles.

    Args:
        photo: RGB, of any aspect ratio; one that is taller than MAX_HEIGHT_PX is squeezed to it.
        maps:  of a batch that holds the photo at `index`.
    """
    height = min(max(1, round(PANEL_PX * photo.height / photo.width)), MAX_HEIGHT_PX)
    photo = photo.resize((PANEL_PX, height), Image.Resampling.LANCZOS)
    panels = [("photo", photo)]
    for name, values in maps._asdict().items():
        if values is not None:
            panels.append((TITLES[name], _overlay(photo, values[index])))
    sheet = Image.new("RGB", (PANEL_PX * len(panels), height + TITLE_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, panel) in enumerate(panels):
        sheet.paste(panel, (PANEL_PX * column, TITLE_PX))
        draw.text((PANEL_PX * column + 6, 4), title, fill="black", font_size=14)
    return sheet


def _branch_map(
    branch: SideBranch | None, tokens: Tensor | None, grid: tuple[int, int]
) -> NDArray[np.float32] | None:
    if branch is None or tokens is None:
        return None
    return _as_map(branch.head.patch_shares(tokens, grid), grid)


def _frozen_shares(tokens: Tensor) -> Tensor:
    """Shares in a plain generalised mean of the backbone's own unit-length features."""
    features = F.normalize(tokens, dim=-1)
    p = torch.tensor([PLAIN_EXPONENT], device=tokens.device)
    return gem_shares(features, p, F.normalize(generalised_mean(features, p), dim=-1))


def _as_map(shares: Tensor, grid: tuple[int, int]) -> NDArray[np.float32]:
    relative = shares / shares.mean(dim=1, keepdim=True)
    return relative.unflatten(1, grid).float().cpu().numpy()


def _overlay(photo: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Colours from the least to the most important patch, laid over a grey photo."""
    low, high = float(values.min()), float(values.max())
    scaled = Image.fromarray((values - low) / max(high - low, 1e-12))
    smooth = np.clip(np.asarray(scaled.resize(photo.size, Image.Resampling.BICUBIC)), 0, 1)
    colours = (255 * matplotlib.colormaps["turbo"](smooth)[..., :3]).astype(np.uint8)
    grey = photo.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(colours), STRENGTH)
