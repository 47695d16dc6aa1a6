"""The whole model: what it computes, what it leaves out, and that photos do not influence each other."""

import pytest
import torch
from torch import nn

from placeray.errors import ConfigError
from placeray.model.heads import HEADS
from placeray.model.selavpr import ModelConfig, SelaVPR, build_model

KINDS = sorted(HEADS)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_batch_of_one_equals_a_batch_of_eight(kind, make_model, images) -> None:
    model = make_model(kind)
    together = model(images)
    for index in range(8):
        alone = model(images[index : index + 1])
        torch.testing.assert_close(alone.float[0], together.float[index], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.code_logits[0], together.code_logits[index], rtol=0, atol=1e-6)
        assert torch.equal(alone.code[0], together.code[index])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_cpu_gives_the_same_bits_twice(kind, make_model, images) -> None:
    model = make_model(kind)
    for first, second in zip(model(images), model(images), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_input_need_not_be_square(kind, make_model) -> None:
    model = make_model(kind)
    wide, tall = torch.randn(2, 3, 42, 84), torch.randn(2, 3, 84, 42)
    assert model(wide).float.shape == model(tall).float.shape == (2, model.descriptor_dim)
    turned = model(wide.transpose(2, 3)).float
    assert not torch.allclose(turned, model(wide).float, atol=1e-4)  # rows are not taken for columns


@torch.no_grad()
def test_the_branches_do_not_interact(make_model, images) -> None:
    model = make_model("gem")
    both = model(images)
    model.set_branches(float=True, code=False)
    only_float = model(images)
    model.set_branches(float=False, code=True)
    only_code = model(images)
    assert only_float.code is None
    assert only_float.code_logits is None
    assert only_code.float is None
    assert torch.equal(only_float.float, both.float)
    assert torch.equal(only_code.code_logits, both.code_logits)


@torch.no_grad()
def test_a_branch_that_is_switched_off_is_not_computed(make_model, images) -> None:
    model = make_model("gem")
    called: list[nn.Module] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: called.append(module))
    model.set_branches(float=False, code=True)
    model(images)
    assert not set(called) & set(model.float_branch.modules())
    assert set(called) & set(model.code_branch.modules())


@pytest.mark.parametrize(("kind", "tokens"), [("gem", 16), ("boq", 16), ("salad", 17)])
@torch.no_grad()
def test_the_cls_token_is_carried_only_for_a_head_that_reads_it(kind, tokens, make_model, images) -> None:
    model = make_model(kind, bits=None)
    seen: list[int] = []
    for adapter in model.float_branch.adapters:
        adapter.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model(images)
    assert seen == [tokens] * 3


@torch.no_grad()
def test_the_running_sum_stays_in_float32_under_autocast(make_model, images) -> None:
    branch = make_model(bits=None).float_branch
    total, tokens = torch.randn(2, 16, 64), torch.randn(2, 16, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert branch.step(0, total, tokens, (4, 4)).dtype == torch.float32


@torch.no_grad()
def test_salad_leaves_registers_out(make_model, images) -> None:
    model = make_model("salad", None, name="vit_small_patch14_reg4_dinov2")
    assert model.backbone.num_prefix_tokens == 5
    features, grid = model.features(images)
    assert features.float.shape == (8, 1 + grid[0] * grid[1], 64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_at_the_start_the_branch_is_the_normalised_entry_of_the_first_adapted_block(
    kind, make_model, images
) -> None:
    model = make_model(kind, fresh=True, first_adapted_block=1)
    features, _ = model.features(images)
    start = next(model.backbone.streams(images))
    expected = model.backbone.norm(model.float_branch.tokens(start, 1))
    torch.testing.assert_close(features.float, expected)


@torch.no_grad()
def test_the_running_sum_by_its_formula(make_model, images) -> None:
    """y <- y + adapter(y + x), with the cls token carried along as the reference does."""
    model = make_model("gem", first_adapted_block=1)
    first, *streams = model.backbone.streams(images)
    total = first
    for adapter, stream in zip(model.float_branch.adapters, streams, strict=True):
        total = total + adapter(total + stream, (4, 4))
    expected = model.float_branch.head(model.backbone.norm(total)[:, 1:], (4, 4))
    torch.testing.assert_close(model(images).float, expected)


@torch.no_grad()
def test_codes_are_the_signs_of_unit_logits(make_model, images) -> None:
    found = make_model("gem")(images)
    torch.testing.assert_close(found.code_logits.norm(dim=1), torch.ones(8))
    assert torch.equal(found.code, torch.where(found.code_logits >= 0, 1.0, -1.0))


def test_the_trainable_weights_follow_the_seed_alone(tiny_backbone) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(99 + seed)  # what was drawn before must not matter
        model = build_model(ModelConfig(backbone=tiny_backbone, hash_bits=16, seed=seed))
        return {name: value for name, value in model.state_dict().items() if "head" in name}

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    assert not torch.equal(
        weights(1)["float_branch.head.project.weight"], weights(2)["float_branch.head.project.weight"]
    )


def test_building_a_model_leaves_the_global_generator_alone(tiny_backbone) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_model(ModelConfig(backbone=tiny_backbone))
    assert torch.equal(torch.rand(1), expected)


def test_what_makes_no_model_is_named(make_model) -> None:
    with pytest.raises(ValueError, match="neither a float_head nor hash_bits"):
        ModelConfig(float_head=None)
    with pytest.raises(ValueError, match="multiple of 8"):
        ModelConfig(hash_bits=12)
    with pytest.raises(ConfigError, match="leaves this model nothing to compute"):
        make_model("gem", None).set_branches(float=False, code=True)
    with pytest.raises(
        ConfigError, match="salad reads the cls token, which vit_medium_patch16_gap_256 has not"
    ):
        make_model("salad", name="vit_medium_patch16_gap_256", embed_dim=64, position_px=64)


@torch.no_grad()
def test_bfloat16_autocast_stays_close_and_gives_float32(make_model, images) -> None:
    model: SelaVPR = make_model("gem")
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images)
    assert {value.dtype for value in found} == {torch.float32}
    assert torch.nn.functional.cosine_similarity(found.float, exact.float).min() > 0.999
