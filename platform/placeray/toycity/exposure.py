"""The camera's part of a photo: blur, vignetting, white balance, tone curve and noise."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.toycity.conditions import Conditions
from placeray.toycity.hashing import Floats

TONES = 4096
BRIGHTEST = 4.0  # scene values above this are white in any case


def expose(photo: Floats, now: Conditions) -> NDArray[np.uint8]:
    """(3, H, W) light to (H, W, 3) uint8 pixels; `photo` may be overwritten."""
    if now.blur > 0.05:
        photo = _blur(_blur(photo, now.blur / 3, axis=1), now.blur / 3, axis=2)
    photo *= _falloff(photo.shape[1], photo.shape[2], now.vignette)
    photo *= now.gain[:, None, None] * np.float32(TONES / BRIGHTEST)
    pixels = _tone_curve(now.gamma).take(photo.astype(np.int32), mode="clip")
    pixels += _grain(pixels.size, now.seed).reshape(pixels.shape) * np.float32(now.noise * 255)
    np.clip(pixels, 0, 255, out=pixels)
    return np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0))


def _tone_curve(gamma: float) -> Floats:
    """(TONES,) light to pixel value: a soft shoulder, so that signs do not become white holes, then gamma."""
    light = np.arange(TONES, dtype=np.float32) * np.float32(BRIGHTEST / TONES)
    light = light * (1 + light * 0.2) / (1 + light * 0.65) * np.float32(1.25)
    curve: Floats = np.minimum(light ** np.float32(gamma), 1.2) * np.float32(255) + np.float32(0.5)
    return curve


def _grain(size: int, seed: int) -> Floats:
    """Normal noise: a stretch of a long table, which is far cheaper than drawing it for every photo."""
    table = _noise_table(max(2**18, 1 << size.bit_length()))
    start = seed % (len(table) - size)
    return table[start : start + size]


@lru_cache(maxsize=2)
def _noise_table(size: int) -> Floats:
    return np.random.default_rng(3).standard_normal(size, dtype=np.float32)


def _blur(photo: Floats, side: float, axis: int) -> Floats:
    """A filter of three taps along one axis; `side` is the weight of either neighbour."""
    middle: list[Any] = [slice(None)] * 3
    before, after = middle.copy(), middle.copy()
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    blurred = photo * np.float32(1 - 2 * side)
    blurred[tuple(after)] += photo[tuple(before)] * np.float32(side)
    blurred[tuple(before)] += photo[tuple(after)] * np.float32(side)
    for end in (0, -1):  # an edge pixel is its own neighbour
        edge = middle.copy()
        edge[axis] = end
        blurred[tuple(edge)] += photo[tuple(edge)] * np.float32(side)
    return blurred


def _falloff(height: int, width: int, vignette: float) -> Floats:
    """(H, W) share of light that reaches a pixel: less towards the corners."""
    up = ((np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1) ** 2
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1) ** 2
    return np.asarray(1 - np.float32(vignette / 2) * (up[:, None] + across), dtype=np.float32)
