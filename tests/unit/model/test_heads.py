"""The heads: one property test for the family, and slow twins for the two that have a formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placeray.errors import ConfigError
from placeray.model.boq import BoqConfig
from placeray.model.gem import GemConfig, GemHead, generalised_mean
from placeray.model.heads import HEADS, build_head
from placeray.model.salad import SaladConfig, assign_to_clusters

WIDTH = 64
CONFIGS = {
    "gem": GemConfig(dim=24),
    "boq": BoqConfig(channels=64, queries=4, rows=3),
    "salad": SaladConfig(clusters=4, cluster_dim=6, token_dim=5, hidden=16),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("grid", [(3, 3), (2, 7)])
def test_every_head_gives_one_unit_vector_per_photo_and_photos_do_not_meet(
    kind: str, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    head = build_head(CONFIGS[kind], WIDTH).eval()
    tokens = torch.randn(3, grid[0] * grid[1] + head.needs_cls_token, WIDTH)
    with torch.no_grad():
        found = head(tokens, grid)
        alone = torch.cat([head(one[None], grid) for one in tokens])
    assert found.shape == (3, head.dim) == (3, CONFIGS[kind].dim)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found, alone)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize(
    ("config", "width", "parameters", "dim"),
    [
        (GemConfig(), 768, 2_165_505, 2048),
        (GemConfig(dim=512), 768, 984_321, 512),
        (GemConfig(dim=4096), 1024, 5_248_001, 4096),
        (BoqConfig(), 768, 8_626_080, 12288),
        (BoqConfig(), 1024, 9_510_816, 12288),
        (SaladConfig(), 768, 1_411_009, 8448),
        (SaladConfig(), 1024, 1_804_225, 8448),
    ],
)
def test_the_published_sizes(config: GemConfig, width: int, parameters: int, dim: int) -> None:
    with torch.device("meta"):
        head = build_head(config, width)
    assert sum(value.numel() for value in head.parameters()) == parameters
    assert head.dim == dim


def test_generalised_mean_by_its_formula() -> None:
    features = torch.tensor([[[0.5, -0.5], [0.1, 0.0]]])
    p = 2.5
    first = ((0.5**p + 0.1**p) / 2) ** (1 / p)
    found = generalised_mean(features, torch.tensor([p]))
    torch.testing.assert_close(found, torch.tensor([[first, 1e-6]]))


def plain_gem(head: GemHead, tokens: Tensor) -> Tensor:
    """GeM by torch's own operations and their own backward."""
    features = F.normalize(head.project(tokens), dim=-1)
    return F.normalize(head.reduce(features.clamp(min=1e-6).pow(head.p).mean(dim=1).pow(1 / head.p)), dim=-1)


def test_gradients_of_gem_equal_those_of_autograd() -> None:
    torch.manual_seed(0)
    head, found = GemHead(12, GemConfig(dim=5)), []
    torch.nn.init.constant_(head.p, 2.7)
    for forward in (lambda tokens: head(tokens, (2, 4)), lambda tokens: plain_gem(head, tokens)):
        tokens = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
        head.zero_grad()
        result = forward(tokens)
        (result * torch.linspace(-1, 1, 5)).sum().backward()
        found.append([result, tokens.grad, *(value.grad.clone() for value in head.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_mean_too_small_for_its_power_gets_no_gradient() -> None:
    features = torch.full((1, 4, 2), 2e-6).requires_grad_()
    p = torch.tensor([8.0], requires_grad=True)
    generalised_mean(features, p).sum().backward()
    assert features.grad is not None
    assert p.grad is not None
    assert features.grad.isfinite().all()
    assert p.grad.isfinite().all()


def slow_assignment(scores: Tensor, dust_bin: Tensor, iterations: int) -> Tensor:
    """Optimal transport as SALAD's code writes it: explicit marginals, potentials one after the other."""
    batch, m, n = scores.shape
    full = torch.empty(batch, m + 1, n)
    full[:, :m] = scores
    full[:, m] = dust_bin
    norm = -math.log(n + m)
    log_a, log_b = torch.full((batch, m + 1), norm), torch.full((batch, n), norm)
    log_a[:, -1] += math.log(n - m)
    u, v = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(iterations):
        u = log_a - torch.logsumexp(full + v.unsqueeze(1), dim=2)
        v = log_b - torch.logsumexp(full + u.unsqueeze(2), dim=1)
    return torch.exp(full + u.unsqueeze(2) + v.unsqueeze(1) - norm)[:, :-1]


@pytest.mark.parametrize("batch", [1, 3])
def test_assignment_equals_its_slow_twin(batch: int) -> None:
    torch.manual_seed(1)
    scores, dust_bin = 3 * torch.randn(batch, 5, 12), torch.tensor(0.7)
    found = assign_to_clusters(scores, dust_bin, 3)
    torch.testing.assert_close(found, slow_assignment(scores, dust_bin, 3))
    assert (found.sum(dim=1) <= 1 + 1e-5).all()  # the rest of a patch lies in the dustbin


def test_salad_puts_the_cls_token_first_and_clusters_dim_major() -> None:
    torch.manual_seed(2)
    head = build_head(CONFIGS["salad"], WIDTH).eval()
    tokens = torch.randn(1, 10, WIDTH)
    with torch.no_grad():
        found = head(tokens, (3, 3))
        token = F.normalize(head.token_features(tokens[:, 0]), dim=1)
        image = tokens[:, 1:].transpose(1, 2).reshape(1, WIDTH, 3, 3)
        features, scores = head.cluster_features(image).flatten(2), head.score(image).flatten(2)
        weights = slow_assignment(scores, head.dust_bin, 3)
        clusters = (features[:, :, None] * weights[:, None]).sum(-1)  # (1, cluster_dim, clusters)
        expected = F.normalize(torch.cat([token, F.normalize(clusters, dim=1).flatten(1)], dim=1), dim=1)
    torch.testing.assert_close(found, expected)


def test_salad_says_that_it_needs_more_patches() -> None:
    head = build_head(CONFIGS["salad"], WIDTH)
    with pytest.raises(ConfigError, match="4 clusters and needs more patches than that; the input has 4"):
        head(torch.zeros(1, 5, WIDTH), (2, 2))


def test_boq_refuses_a_width_without_whole_heads() -> None:
    with pytest.raises(ValueError, match="channels=100 is not a multiple of 64"):
        BoqConfig(channels=100)
