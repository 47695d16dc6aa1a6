"""Weights go in and come out under their published names, for every variant that was published."""

import json
import random
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from placeray.errors import CheckpointError
from placeray.model.checkpoint import export_weights, load_checkpoint, load_weights
from placeray.model.published import recognise
from placeray.model.weights import weights_id

KEY_LISTS = sorted((Path(__file__).parent / "fixtures").glob("keys_*.json"))


def different_constants(file: Path) -> dict[str, Tensor]:
    """A state dict of the listed names and shapes; each tensor is one number stretched, which is free."""
    weights = {}
    for number, (name, shape) in enumerate(json.loads(file.read_text()).items()):
        kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        weights[name] = torch.tensor(number, dtype=kind).expand(shape)
    return weights


def test_all_variants_are_listed() -> None:
    assert len(KEY_LISTS) == 12


@pytest.mark.parametrize("file", KEY_LISTS, ids=lambda file: file.stem.removeprefix("keys_"))
def test_import_then_export_changes_nothing(file: Path) -> None:
    weights = different_constants(file)
    exported = export_weights(load_weights(recognise(weights), weights))
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(exported[name], value), name
        assert exported[name].dtype == value.dtype, name


@pytest.mark.parametrize("file", KEY_LISTS, ids=lambda file: file.stem.removeprefix("keys_"))
def test_one_error_names_everything_that_does_not_fit(file: Path) -> None:
    weights = different_constants(file)
    config = recognise(weights)
    missing = [name for name in weights if name.endswith((".3.ls1.gamma", "5.branch2.0.bn.running_var"))]
    for name in missing:
        del weights[name]
    weights["backbone.patch_embed.proj.bias"] = torch.zeros(3)
    weights["linear9.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_weights(config, weights)
    for name in (*missing, "linear9.weight", "backbone.patch_embed.proj.bias is (3,) and should be"):
        assert name in str(error.value)
    assert len(missing) >= 2


@pytest.mark.parametrize("file", KEY_LISTS, ids=lambda file: file.stem.removeprefix("keys_"))
def test_whatever_is_missing_is_named(file: Path) -> None:
    """Also what a variant is recognised by: names of the heads, of the first layers and of the last adapter."""
    weights = different_constants(file)
    heads = [name for name in weights if not name.startswith("backbone.")]
    last = [name for name in weights if name.startswith("backbone.adapters") and ".D_fc" in name][-1]
    chosen = random.Random(file.stem).sample(heads, 4)
    for name in (*chosen, last, "backbone.patch_embed.proj.weight", "backbone.cls_token"):
        others = {other: value for other, value in weights.items() if other != name}
        with pytest.raises(CheckpointError, match=f"1 missing: {re.escape(name)}$"):
            load_weights(recognise(others), others)


def test_a_missing_adapter_is_no_other_model() -> None:
    weights = different_constants(KEY_LISTS[0])
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("backbone.adapters"))
    others = {name: value for name, value in weights.items() if f"adapters.{depth - 1}." not in name}
    with pytest.raises(CheckpointError, match=rf"missing: backbone\.adapters\.{depth - 1}\."):
        load_weights(recognise(others), others)


def test_a_real_file_round_trips(checkpoint_file: str, detgen: ModuleType) -> None:
    """Also through the file itself: wrapped, with `module.` and with numpy scalars of an old numpy."""
    loaded = load_checkpoint(checkpoint_file)
    exported = export_weights(loaded.model)
    assert weights_id(exported) == loaded.model_id
    for name in (
        "backbone.mask_token",
        "linear4.bias",
        "backbone.adapters_hashing.11.branch3.1.bn.running_var",
    ):
        shape = tuple(exported[name].shape)
        assert torch.equal(exported[name], torch.from_numpy(detgen.tensor(name, shape, "base_rerank")))
