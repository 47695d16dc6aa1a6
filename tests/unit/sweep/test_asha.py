"""Successive halving: the same verdicts as Ray Tune's scheduler whenever a trial comes to a rung."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.sweep.asha import AshaConfig, best_until, falls_behind, rungs


class Stub:
    """What Ray Tune's rungs ask of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


EPOCHS = 9
# Scores rise by at least 0 an epoch: "best so far" and Ray Tune's "now" are then the same.
gains = st.lists(
    st.lists(st.integers(0, 5), min_size=EPOCHS, max_size=EPOCHS), min_size=1, max_size=8
)  # trials x epochs


@settings(max_examples=60, deadline=None)
@given(gains, st.integers(1, 3), st.sampled_from([2.0, 3.0, 4.0]), st.randoms(use_true_random=False))
def test_at_a_rung_it_decides_as_ray_tune_does(
    gains: list[list[int]], grace: int, reduction: float, random: Any
) -> None:
    schedulers = pytest.importorskip("ray.tune.schedulers")
    theirs = schedulers.ASHAScheduler(
        metric="score", mode="max", max_t=EPOCHS, grace_period=grace, reduction_factor=reduction, brackets=1
    )
    config = AshaConfig(grace_epochs=grace, reduction=reduction)
    stubs = [Stub(number) for number in range(len(gains))]
    for stub in stubs:
        theirs.on_trial_add(None, stub)
    curves: list[dict[int, float]] = [{} for _ in gains]
    alive = set(range(len(gains)))
    while alive:
        number = random.choice(sorted(alive))
        epoch = len(curves[number]) + 1
        curves[number][epoch] = float(sum(gains[number][:epoch]))
        result = {"training_iteration": epoch, "score": curves[number][epoch]}
        said = theirs.on_trial_result(None, stubs[number], result)
        others = [curve for other, curve in enumerate(curves) if other != number]
        if epoch in rungs(config, EPOCHS):
            assert falls_behind(curves[number], others, config, EPOCHS) == (said == "STOP")
        if said == "STOP":
            alive.discard(number)


def test_rungs_lie_at_powers_and_the_last_epoch_is_none() -> None:
    assert rungs(AshaConfig(grace_epochs=1, reduction=2), 9) == [1, 2, 4, 8]
    assert rungs(AshaConfig(grace_epochs=2, reduction=3), 18) == [2, 6]
    assert rungs(AshaConfig(grace_epochs=1, reduction=1.4), 4) == [1, 2, 3]


def test_who_reported_first_is_compared_again_once_others_are_there() -> None:
    config = AshaConfig()
    first = {1: 0.1}
    assert not falls_behind(first, [], config, 8), "nobody to compare with"
    others = [{1: 0.5}, {1: 0.6}]
    assert falls_behind(first, others, config, 8)
    assert not falls_behind({**first, 2: 0.7}, others, config, 8), "at the second rung it stands alone"
    assert falls_behind({1: 0.1, 2: 0.2, 3: 0.3}, [{1: 0.5, 2: 0.6}, {1: 0.4, 2: 0.5}], config, 8)


def test_a_score_counts_only_where_the_trial_has_come_that_far() -> None:
    assert best_until({1: 0.3, 2: 0.2}, 2) == 0.3
    assert best_until({1: 0.3}, 2) is None
    assert best_until({4: 0.3}, 2) is None
    assert not falls_behind({}, [{1: 0.5}], AshaConfig(), 8)
