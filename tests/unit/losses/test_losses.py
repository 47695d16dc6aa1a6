"""The losses against slow, obvious twins, and what happens when there is nothing to learn from."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from placeray.errors import TrainingError
from placeray.losses import LossConfig, MultiSimilarity, hashing_loss, recipe_loss

CONFIG = LossConfig()


class Found(NamedTuple):
    float: Tensor | None = None
    code_logits: Tensor | None = None
    code: Tensor | None = None


def batch(seed: int, places: int = 4, photos: int = 3, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Descriptors that scatter around one centre per place, so that some pairs are hard and some easy."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(places, 1, dim, generator=generator)
    descriptors = centres + 0.8 * torch.randn(places, photos, dim, generator=generator)
    return descriptors.flatten(0, 1), torch.arange(places).repeat_interleave(photos)


def cosine(descriptors: Tensor) -> np.ndarray:
    unit = descriptors.detach().double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def slow_pairs(descriptors: Tensor, labels: Tensor) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Anchor by anchor: a positive is kept if some negative is nearly as similar, and the other way round."""
    s, positives, negatives = cosine(descriptors), [], []
    for i in range(len(labels)):
        same = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        other = [j for j in range(len(labels)) if labels[j] != labels[i]]
        if not same or not other:
            continue
        positives += [(i, p) for p in same if s[i, p] - 0.1 < max(s[i, n] for n in other)]
        negatives += [(i, n) for n in other if s[i, n] + 0.1 > min(s[i, p] for p in same)]
    return positives, negatives


def slow_multi_similarity(descriptors: Tensor, labels: Tensor) -> float:
    s, (positives, negatives) = cosine(descriptors), slow_pairs(descriptors, labels)
    total = 0.0
    for i in range(len(labels)):
        total += np.log(1 + sum(np.exp(-s[a, p]) for a, p in positives if a == i))
        total += np.log(1 + sum(np.exp(50 * s[a, n]) for a, n in negatives if a == i)) / 50
    return total / len(labels)


def slow_hashing(logits: Tensor, code: Tensor, pairs: list[tuple[int, int]]) -> float:
    gaps = [float(logits[i] @ logits[j] - (code[i] @ code[j]) / code.shape[1]) ** 2 for i, j in pairs]
    return sum(gaps) / len(gaps) if gaps else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_mining_equals_its_slow_twin(seed: int) -> None:
    descriptors, labels = batch(seed)
    a1, p, a2, n = MultiSimilarity(CONFIG).mine(descriptors, labels)
    positives, negatives = slow_pairs(descriptors, labels)
    assert set(zip(a1.tolist(), p.tolist(), strict=True)) == set(positives)
    assert set(zip(a2.tolist(), n.tolist(), strict=True)) == set(negatives)
    assert 0 < len(positives) < len(labels) * 2
    assert 0 < len(negatives) < len(labels) * 9


@pytest.mark.parametrize("seed", range(5))
def test_the_float_loss_equals_its_slow_twin(seed: int) -> None:
    descriptors, labels = batch(seed)
    terms = recipe_loss(Found(float=descriptors), labels, "float", CONFIG)
    assert terms.total.item() == pytest.approx(slow_multi_similarity(descriptors, labels), rel=1e-5)
    assert terms.similarity.item() == 0
    assert (terms.num_pos_pairs, terms.num_neg_pairs) == tuple(map(len, slow_pairs(descriptors, labels)))


@pytest.mark.parametrize("seed", range(5))
def test_the_hashing_loss_equals_its_slow_twin(seed: int) -> None:
    values, labels = batch(seed, dim=16)
    logits = torch.nn.functional.normalize(values, dim=1)
    code = torch.where(logits >= 0, 1.0, -1.0)
    terms = recipe_loss(Found(code_logits=logits, code=code), labels, "code", CONFIG)
    positives, negatives = slow_pairs(code, labels)
    similarity = slow_hashing(logits, code, positives + negatives)
    assert terms.main.item() == pytest.approx(slow_multi_similarity(code, labels), rel=1e-5)
    assert terms.similarity.item() == pytest.approx(similarity, rel=1e-5)
    assert terms.total.item() == pytest.approx(terms.main.item() + 0.1 * similarity, rel=1e-6)


def test_the_constraint_moves_logits_and_codes() -> None:
    values, labels = batch(1, dim=16)
    logits = torch.nn.functional.normalize(values, dim=1).requires_grad_()
    code = torch.where(logits >= 0, 1.0, -1.0).detach().requires_grad_()
    pairs = MultiSimilarity(CONFIG).mine(code, labels)
    hashing_loss(logits, code, pairs).backward()
    assert logits.grad is not None
    assert code.grad is not None
    assert logits.grad.any()
    assert code.grad.any()


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=8),
    seed=st.integers(0, 2**16),
    sees=st.sampled_from(["float", "code"]),
)
def test_any_batch_gives_a_finite_loss_and_gradient(labels: list[int], seed: int, sees: str) -> None:
    """One place only, no place twice, everything equal: nothing is mined, and nothing breaks."""
    values = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    logits = torch.nn.functional.normalize(values, dim=1)
    code = torch.where(logits >= 0, 1.0, -1.0) + logits - logits.detach()  # straight through
    found = Found(float=logits, code_logits=logits, code=code)
    terms = recipe_loss(found, torch.tensor(labels), sees, CONFIG)  # type: ignore[arg-type]
    assert torch.isfinite(terms.total)
    if terms.total.requires_grad:
        terms.total.backward()
    assert values.grad is None or torch.isfinite(values.grad).all()
    if len(set(labels)) in (1, len(labels)):
        assert terms.total.item() == 0
        assert (terms.num_pos_pairs, terms.num_neg_pairs) == (0, 0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_the_order_of_photos_does_not_matter(seed: int) -> None:
    descriptors, labels = batch(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    straight = recipe_loss(Found(float=descriptors), labels, "float", CONFIG)
    shuffled = recipe_loss(Found(float=descriptors[order]), labels[order], "float", CONFIG)
    assert shuffled.total.item() == pytest.approx(straight.total.item(), rel=1e-5)
    assert shuffled.num_pos_pairs == straight.num_pos_pairs


def test_the_loss_is_in_float32_under_autocast() -> None:
    descriptors, labels = batch(2)
    exact = recipe_loss(Found(float=descriptors), labels, "float", CONFIG).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recipe_loss(Found(float=descriptors), labels, "float", CONFIG).total
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


def test_a_descriptor_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match="the loss sees the code descriptor"):
        recipe_loss(Found(float=torch.zeros(2, 3)), torch.tensor([0, 1]), "code", CONFIG)
