"""What is made of ended trials: importance, fronts, short words, pictures and the page."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placeray.sweep.config import Sweep
from placeray.sweep.importance import importance
from placeray.sweep.ledger import Trial
from placeray.sweep.objectives import best_trial, front
from placeray.sweep.page import SweepPage, render_sweep_page
from placeray.sweep.pictures import draw_pictures
from placeray.sweep.words import short_paths, short_value

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
    "train.loss.base": {"kind": "uniform", "low": 0.0, "high": 1.0},
    "model.float_head": {"kind": "choice", "values": [{"kind": "gem", "dim": 8}, {"kind": "gem", "dim": 16}]},
}


def a_sweep(number: int = 12) -> tuple[Sweep, list[Trial]]:
    """The score follows the rate; the head and the base do nothing. One trial failed, one was stopped."""
    plan = Sweep.model_validate(
        {
            "normalized": "n", "output": "o", "space": SPACE, "trials": number,
            "model": {"backbone": {"name": "toy"}},
            "train": {"epochs": 2, "validation": {"sets": [{"name": "toy-val", "dataset": "toy"}]}},
        }
    )  # fmt: skip
    draw, trials = np.random.default_rng(0), []
    for at in range(number):
        values = {
            "train.optimizer.lr": 10 ** draw.uniform(-4, -2), "train.loss.base": draw.uniform(),
            "model.float_head": SPACE["model.float_head"]["values"][at % 2],
        }  # fmt: skip
        share = 0.5 + 0.2 * (np.log10(values["train.optimizer.lr"]) + 3)
        epochs = [
            {"epoch": e, "step": 10 * e, "train/loss": 2 - share * e / 2, "score": 2 * share * e / 2}
            | {"toy-val/float/recall_at_1": share * e / 2, "toy-val/float/recall_at_5": share * e / 2}
            for e in (1.0, 2.0)
        ]
        trials.append(
            Trial(
                at, values, "finished", epochs=epochs, checkpoint="c", step_s=0.1, map_bytes=12 + 8 * (at % 2)
            )
        )
    trials[1].state, trials[1].epochs, trials[1].checkpoint = "failed", [], ""
    trials[1].why = "the loss became nan <at> a rate & more"
    trials[2].state, trials[2].epochs, trials[2].why = "stopped", trials[2].epochs[:1], "it had fallen behind"
    return plan, trials


def test_importance_finds_what_the_score_follows() -> None:
    plan, trials = a_sweep(30)
    shares = importance(plan.space, trials[3:])
    assert next(iter(shares)) == "train.optimizer.lr"
    assert shares["train.optimizer.lr"] == pytest.approx(1.0), "the score rises with the rate alone"
    assert shares["train.loss.base"] < 0.3
    assert shares["model.float_head"] < 0.3
    assert importance(plan.space, trials[:3]) == {}
    heads = SPACE["model.float_head"]["values"]
    grouped = [
        Trial(i, {"model.float_head": heads[i % 2]}, epochs=[{"epoch": 1.0, "score": i % 2}])
        for i in range(8)
    ]
    space = {"model.float_head": plan.space["model.float_head"]}
    assert importance(space, grouped) == {"model.float_head": pytest.approx(1.0)}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=9))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    costs, gains = [float(cost) for cost, _ in points], [float(gain) for _, gain in points]
    unbeaten = {
        (cost, gain)
        for cost, gain in points
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    }
    kept = front(costs, gains)
    assert {points[at] for at in kept} == unbeaten
    assert len(kept) == len(unbeaten), "of equal points the first stands for all"


def test_paths_and_values_in_a_few_characters() -> None:
    assert short_paths(["train.optimizer.lr", "model.seed", "train.seed", "seed"]) == {
        "train.optimizer.lr": "lr", "model.seed": "model.seed", "train.seed": "train.seed", "seed": "seed",
    }  # fmt: skip
    shown = [
        short_value(value) for value in (None, True, 3, 0.00213456, "adam", [1, 2], {"kind": "gem", "dim": 8})
    ]
    assert shown == ["none", "true", "3", "0.00213", "adam", "[1, 2]", "gem dim=8"]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.9, 2.0]), st.sampled_from([None, 0.0, 1.5, 1.6]), st.booleans()),
        max_size=6,
    )
)
def test_of_trials_with_equal_scores_the_best_is_the_first_with_the_best_codes(
    given_trials: list[tuple[float, float | None, bool]],
) -> None:
    trials = []
    for number, (score, codes, kept) in enumerate(given_trials):
        report = {"epoch": 1.0, "score": score} | ({} if codes is None else {"code_score": codes})
        trials.append(Trial(number, {}, "finished", epochs=[report], checkpoint="c" if kept else ""))
    able = [(-score, -(codes or 0.0), at) for at, (score, codes, kept) in enumerate(given_trials) if kept]
    best = best_trial(trials)
    assert (best.number if best else None) == (sorted(able)[0][2] if able else None)


def test_the_page_names_the_best_and_the_broken_and_holds_all_pictures() -> None:
    plan, trials = a_sweep()
    pictures = draw_pictures(plan.space, trials)
    assert set(pictures) == {"curves.png", "parallel_coordinates.png", "importance.png", "pareto_front.png"}
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
    text = render_sweep_page(SweepPage("A sweep", plan, trials, pictures, {"code": "0.1 <x>"}))
    best = best_trial(trials)
    assert best is not None
    assert f"Trial {best.number} is the best of 12" in text
    assert "1 of 12 trials failed (1)" in text
    assert "the loss became nan &lt;at&gt; a rate &amp; more" in text
    assert text.count('src="data:image/png;base64,') == 4
    assert "http" not in text.replace("http-equiv", "")


def test_pictures_and_page_of_trials_that_all_failed_or_have_not_begun() -> None:
    plan, trials = a_sweep(3)
    for trial in trials:
        trial.state, trial.epochs, trial.checkpoint = "failed", [], ""
    assert draw_pictures(plan.space, trials) == {}
    assert "No trial came to a checkpoint" in render_sweep_page(SweepPage("A sweep", plan, trials, {}))
