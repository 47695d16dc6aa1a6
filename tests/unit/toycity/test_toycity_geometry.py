"""Points of the world come to the pixels that perspective demands, in projection, ray casting and paint."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.toycity.camera import Pose, look, project
from placeray.toycity.conditions import Conditions, Shot, conditions
from placeray.toycity.config import DifficultyConfig
from placeray.toycity.painter import paint
from placeray.toycity.raycast import NOTHING_M, cast
from placeray.toycity.street import BUILDING, TREE, Street, StreetKey, build_street

KEY = StreetKey(seed=5, district=1, number=2, length_m=200)
POSES = st.builds(
    Pose,
    x_m=st.floats(40, 160),
    y_m=st.floats(-2.5, 2.5),
    eye_m=st.floats(1.6, 2.6),
    heading_deg=st.floats(-179, 179),
    fov_deg=st.floats(50, 85),
    tilt_deg=st.floats(0, 12),
)


def test_project_by_hand() -> None:
    """90 degrees of view and 200 pixels: the focal length is 100 pixels, the arithmetic fits in the head."""
    view = look(Pose(x_m=10, y_m=0, eye_m=2, heading_deg=90, fov_deg=90, tilt_deg=0), 200, 100)
    # Looking right (+y): a point 20 m ahead, 5 m further along the street (to the left), 4 m above the eye.
    column, row, depth = project(view, 15, 20, 6)
    assert depth == pytest.approx(20)
    assert column == pytest.approx(100 - 100 * 5 / 20 - 0.5)
    assert row == pytest.approx(50 - 100 * 4 / 20 - 0.5)


def test_behind_the_camera_has_negative_depth() -> None:
    view = look(Pose(0, 0, 2, 0, 70, 0), 64, 48)
    assert project(view, -5, 0, 2)[2] < 0


@settings(deadline=None, max_examples=25)
@given(pose=POSES)
def test_every_ray_ends_where_its_wall_projects_to(pose: Pose) -> None:
    """The point a column meets, computed from the wall's own coordinates, projects back to that column."""
    view, street = look(pose, 64, 48), build_street(KEY)
    for walls in cast(street, view):
        for column in np.flatnonzero(walls.depth < NOTHING_M)[::7]:
            house, front = street.buildings[walls.building[column]], walls.front[column]
            along, toward = float(walls.along[column]), float(walls.facing[column]) > 0
            x = house["x0"] + along if front else house["x1" if toward else "x0"]
            y = house["y1" if toward else "y0"] if front else house["y0"] + along
            found, row, depth = project(view, float(x), float(y), pose.eye_m)
            assert found == pytest.approx(column, abs=0.02)
            assert row == pytest.approx(view.horizon_row - 0.5)
            assert depth == pytest.approx(float(walls.depth[column]), rel=1e-3)


@settings(deadline=None, max_examples=10)
@given(pose=POSES)
def test_cast_meets_the_wall_that_walking_along_the_ray_meets(pose: Pose) -> None:
    """Slow twin: step along the ray until a house is entered, two centimetres at a time and finely near the answer.

    Coarse steps alone would walk past a corner that the ray only grazes.
    """
    view, street = look(pose, 32, 24), build_street(KEY)
    nearest = cast(street, view)[0]
    boxes = np.stack([street.buildings[name] for name in ("x0", "x1", "y0", "y1")]).astype(np.float64)
    coarse = np.arange(0.1, 60, 0.02)
    for column in range(0, 32, 5):
        near = float(nearest.depth[column]) + np.linspace(-0.01, 0.03, 801)
        steps = np.union1d(coarse, near[(near > 0.1) & (near < 60)])
        x = pose.x_m + steps * float(view.ray_x[column])
        y = pose.y_m + steps * float(view.ray_y[column])
        inside = (
            (x > boxes[0][:, None])
            & (x < boxes[1][:, None])
            & (y > boxes[2][:, None])
            & (y < boxes[3][:, None])
        )
        entered = np.flatnonzero(inside.any(axis=0))
        if entered.size:
            assert nearest.depth[column] == pytest.approx(steps[entered[0]], abs=0.05)
        else:
            assert nearest.depth[column] > 59


@pytest.mark.parametrize(
    "pose",
    [
        Pose(x_m=0, y_m=0, eye_m=2, heading_deg=90, fov_deg=70, tilt_deg=8),
        Pose(x_m=-6, y_m=2, eye_m=1.7, heading_deg=65, fov_deg=80, tilt_deg=5),
        Pose(x_m=5, y_m=-2, eye_m=2.5, heading_deg=118, fov_deg=62, tilt_deg=9),
    ],
)
def test_a_white_sign_is_painted_where_it_projects_to(pose: Pose) -> None:
    """One black house with one white sign: the bright pixels are those between its projected corners."""
    street = _house_with_sign(u0=8, u1=12, z0=3, z1=5)
    photo = paint(street, pose, _plain_day(), 160, 120, 0.0)
    view = look(pose, 160, 120)
    corners = [project(view, x, 10.0, z) for x in (-2.0, 2.0) for z in (3.0, 5.0)]
    # The sky is bright too; between the sign's outermost corners there is only wall.
    left, right = min(c[0] for c in corners), max(c[0] for c in corners)
    top, low = min(c[1] for c in corners), max(c[1] for c in corners)
    window = photo[
        math.floor(top) - 3 : math.ceil(low) + 4, math.floor(left) - 3 : math.ceil(right) + 4
    ].mean(axis=2)
    bright = np.argwhere(window > 120)
    assert bright[:, 0].min() + math.floor(top) - 3 == pytest.approx(top, abs=1.1)
    assert bright[:, 0].max() + math.floor(top) - 3 == pytest.approx(low, abs=1.1)
    assert bright[:, 1].min() + math.floor(left) - 3 == pytest.approx(left, abs=1.1)
    assert bright[:, 1].max() + math.floor(left) - 3 == pytest.approx(right, abs=1.1)


def test_two_photos_share_structure_and_two_places_do_not() -> None:
    """Same street, other light: edges agree far better than those of another street."""
    pose = Pose(100, 0, 2, 60, 70, 6)
    now = _plain_day()
    later = conditions(
        Shot(2020, 6, 1, night=False, south=False, seed=77), DifficultyConfig(light=1), (80, 80)
    )
    here, again = (_edges(paint(build_street(KEY), pose, when, 96, 72, 0.0)) for when in (now, later))
    there = _edges(paint(build_street(StreetKey(5, 1, 3, 200)), pose, now, 96, 72, 0.0))
    same, other = np.corrcoef(here, again)[0, 1], np.corrcoef(here, there)[0, 1]
    assert same > max(0.4, other + 0.3), (same, other)


def _plain_day() -> Conditions:
    calm = DifficultyConfig(light=0, season=0, camera=0, viewpoint=0, occluders=0)
    seeds = (seed for seed in range(1, 100))
    for seed in seeds:
        now = conditions(Shot(2020, 6, 1, night=False, south=False, seed=seed), calm, (90, 90))
        if now.haze_m > 400:
            return now
    raise AssertionError("no clear day in a hundred")


def _house_with_sign(u0: float, u1: float, z0: float, z1: float) -> Street:
    houses = np.zeros(1, dtype=BUILDING)
    sizes = {"x0": -10, "x1": 10, "y0": 10, "y1": 20, "height": 12, "ground_m": 3, "storey_m": 3, "bay_m": 2}
    for name, value in (
        sizes | {"window_w": 1, "window_h": 1, "absent": 1.1, "texture_u": 1, "texture_z": 1}
    ).items():
        houses[name] = value
    houses["wall"] = 0.01
    panel = houses["panels"][:, 1]
    panel["u0"], panel["u1"], panel["z0"], panel["z1"] = u0, u1, z0, z1
    panel["cell_u"] = panel["cell_z"] = 1
    panel["paper"] = panel["ink"] = 1
    houses["panels"][:, [0, 2, 3]] = np.zeros(1, dtype=houses["panels"].dtype)
    no_row = np.array([-500.0], dtype=np.float32)
    return Street(KEY, houses, np.zeros(0, dtype=TREE), 5.0, (no_row, no_row), (no_row * 0, no_row * 0))


def _edges(photo: np.ndarray) -> np.ndarray:
    grey = np.log(photo.astype(np.float64).mean(axis=2) + 8)
    return np.abs(np.diff(grey, axis=1)[:-1]).ravel()
