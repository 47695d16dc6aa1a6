"""What changes between two photos of one place: light, season, camera, and what passes by.

A `Shot` is the when and with what of one photo. `conditions(shot)` turns it into numbers for the painter. The
viewpoint, the other change, is the business of poses.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from placeray.toycity.config import DifficultyConfig
from placeray.toycity.hashing import Floats

SPRING, SUMMER, AUTUMN, WINTER = range(4)


@dataclass(frozen=True)
class Shot:
    """When a photo is taken, and the seed of everything accidental in it."""

    year: int
    month: int  # 1..12
    day: int
    night: bool
    south: bool  # southern hemisphere: its winter is in July
    seed: int

    @property
    def season(self) -> int:
        """0 spring .. 3 winter, by month and hemisphere."""
        month = self.month + 6 if self.south else self.month
        return ((month % 12) // 3 - 1) % 4


@dataclass(frozen=True)
class Conditions:
    """Light, season and camera of one photo. Colours are RGB, roughly linear, 1 = bright white wall."""

    seed: int
    sky_top: Floats
    sky_low: Floats
    ambient: Floats
    sun: Floats
    sun_azimuth_deg: float  # clockwise from north
    sun_height_deg: float
    clouds: float
    haze_m: float
    night: float  # 0 day .. 1 deep night: windows and signs shine
    foliage: Floats
    leaves: float  # 1 full .. 0 bare
    snow: float
    wet: float
    gain: Floats  # exposure and white balance, per channel
    gamma: float
    vignette: float
    noise: float
    blur: float
    traffic: float
    jpeg_quality: int


def draw_shot(rng: np.random.Generator, difficulty: DifficultyConfig, south: bool) -> Shot:
    """A random moment; the harder the season and light, the more of the year and of the night it covers."""
    month = int(rng.integers(1, 13)) if rng.random() < difficulty.season else int(rng.choice([5, 6, 7, 8]))
    night = bool(rng.random() < 0.35 * difficulty.light)
    year, day, seed = int(rng.integers(2012, 2024)), int(rng.integers(1, 29)), int(rng.integers(1, 2**31 - 1))
    return Shot(year=year, month=month, day=day, night=night, south=south, seed=seed)


def conditions(shot: Shot, difficulty: DifficultyConfig, jpeg_quality: tuple[int, int]) -> Conditions:
    """The numbers behind a shot; the same shot gives the same numbers."""
    rng = np.random.default_rng([shot.seed, 5])
    light = _night(rng) if shot.night else _day(rng, difficulty.light)
    return Conditions(
        seed=shot.seed,
        **light,
        **_season(rng, shot.season, difficulty.season),
        **_camera(rng, difficulty.camera, shot.night),
        traffic=difficulty.occluders,
        jpeg_quality=int(rng.integers(jpeg_quality[0], jpeg_quality[1] + 1)),
    )


_DAYLIGHT = {
    # name: sky top, sky low, ambient, sun, sun height range
    "clear": ([0.25, 0.45, 0.85], [0.70, 0.80, 0.95], [0.42, 0.47, 0.55], [0.75, 0.68, 0.55], (25, 65)),
    "overcast": ([0.62, 0.64, 0.68], [0.80, 0.81, 0.83], [0.66, 0.68, 0.70], [0.05, 0.05, 0.05], (30, 60)),
    "golden": ([0.35, 0.45, 0.70], [1.00, 0.75, 0.45], [0.32, 0.30, 0.34], [1.05, 0.62, 0.30], (6, 18)),
    "dusk": ([0.16, 0.18, 0.38], [0.62, 0.42, 0.48], [0.24, 0.23, 0.34], [0.10, 0.06, 0.05], (3, 8)),
    "storm": ([0.22, 0.25, 0.30], [0.45, 0.48, 0.50], [0.36, 0.39, 0.42], [0.03, 0.03, 0.03], (30, 60)),
}


def _day(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    names = list(_DAYLIGHT)
    plain = [0.6, 0.4, 0.0, 0.0, 0.0]
    mixed = [0.3, 0.22, 0.2, 0.14, 0.14]
    weights = np.array(plain) * (1 - strength) + np.array(mixed) * strength
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    top, low, ambient, sun, heights = _DAYLIGHT[name]
    tint = 1 + strength * rng.normal(0, 0.06, 3)
    return {
        "sky_top": _colour(top, tint), "sky_low": _colour(low, tint),
        "ambient": _colour(ambient, tint), "sun": _colour(sun, tint),
        "sun_azimuth_deg": float(rng.uniform(0, 360)), "sun_height_deg": float(rng.uniform(*heights)),
        "clouds": {"clear": 0.25, "golden": 0.4, "dusk": 0.4}.get(name, 0.15) * float(rng.uniform(0.3, 1.0)),
        "haze_m": math.exp(rng.uniform(math.log(60), math.log(900))),
        "night": {"dusk": 0.6, "storm": 0.25}.get(name, 0.0) * float(rng.uniform(0.6, 1.0)),
        "wet": float(name == "storm") * float(rng.uniform(0.2, 1.0)),
    }  # fmt: skip


def _night(rng: np.random.Generator) -> dict[str, Any]:
    street_light = np.array([1.0, 0.72, 0.42]) if rng.random() < 0.6 else np.array([0.85, 0.95, 1.0])
    level = float(rng.uniform(0.14, 0.3))
    return {
        "sky_top": _colour([0.015, 0.02, 0.05], 1.0), "sky_low": _colour([0.08, 0.07, 0.09], 1.0),
        "ambient": _colour(street_light * level, 1.0), "sun": _colour([0.0, 0.0, 0.0], 1.0),
        "sun_azimuth_deg": 0.0, "sun_height_deg": 30.0, "clouds": 0.0, "haze_m": float(rng.uniform(100, 600)),
        "night": float(rng.uniform(0.8, 1.0)), "wet": float(rng.random() < 0.3) * 0.7,
    }  # fmt: skip


_LEAVES = {
    SPRING: ([0.36, 0.52, 0.20], 0.75),
    SUMMER: ([0.18, 0.36, 0.12], 1.0),
    AUTUMN: ([0.58, 0.34, 0.10], 0.7),
    WINTER: ([0.26, 0.22, 0.18], 0.18),
}


def _season(rng: np.random.Generator, season: int, strength: float) -> dict[str, Any]:
    colour, leaves = _LEAVES[season]
    snow = float(season == WINTER and rng.random() < 0.6 * strength) * float(rng.uniform(0.6, 1.0))
    return {"foliage": _colour(colour, rng.uniform(0.8, 1.2)), "leaves": leaves, "snow": snow}


def _camera(rng: np.random.Generator, strength: float, night: bool) -> dict[str, Any]:
    balance = np.exp(rng.normal(0, 0.13 * strength, 3))
    exposure = math.exp(float(rng.normal(0.75 if night else 0.1, 0.3 * strength)))
    return {
        "gain": (balance * exposure).astype(np.float32),
        "gamma": 0.6 * math.exp(float(rng.normal(0, 0.18 * strength))),
        "vignette": float(rng.uniform(0, 0.5)) * strength,
        "noise": float(rng.uniform(0.004, 0.02)) * strength * (2.0 if night else 1.0),
        "blur": float(rng.uniform(0, 0.7)) * strength,
    }


def _colour(rgb: Any, tint: Any) -> Floats:
    return np.clip(np.asarray(rgb) * np.asarray(tint), 0, 1.5).astype(np.float32)
