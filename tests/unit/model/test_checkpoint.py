"""Checkpoints: every form that weights come in, what is refused, and what comes out again."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from placeray import storage
from placeray.errors import CheckpointError, ContractError, StorageError
from placeray.model.checkpoint import (
    export_weights,
    load_checkpoint,
    published_weights,
    save_checkpoint,
    write_weights,
)
from placeray.model.published import recognise
from placeray.model.selavpr import ModelConfig, build_model
from placeray.model.weights import read_weights, weights_id

CARD: dict[str, Any] = {
    "preprocessing": "platform-56",
    "recipe": {"name": "hash"},
    "data_fingerprint": None,
    "metrics": {"val/two_stage/recall_at_1": 0.5},
    "created_at": "2025-01-01T00:00:00+00:00",
}


def assert_same(first, second) -> None:
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "bits"), [("gem", 16), ("boq", None), ("salad", 16), (None, 16)])
def test_a_folder_gives_back_what_was_saved(kind, bits, make_model, images, tmp_path: Path) -> None:
    model = make_model(kind, bits, seed=3, first_adapted_block=1)
    model_id = save_checkpoint(str(tmp_path / "c"), model, CARD)
    loaded = load_checkpoint(str(tmp_path / "c"))
    assert_same(loaded.model, model)
    assert loaded.model_id == model_id == loaded.card["model_id"]
    assert loaded.config == model.config
    assert loaded.preprocess.size_px == 56
    assert not loaded.model.training
    for found, expected in zip(loaded.model(images), model(images), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)


def test_a_loaded_model_can_be_trained_on_without_touching_the_file(
    make_model, images, tmp_path: Path
) -> None:
    save_checkpoint(str(tmp_path), make_model(), CARD)
    before = (tmp_path / "model.pt").read_bytes()
    model = load_checkpoint(str(tmp_path)).model.train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    model(images).float[0].sum().backward()
    optimizer.step()
    assert (tmp_path / "model.pt").read_bytes() == before


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model_state_dict", "state_dict"])
@pytest.mark.parametrize("extras", ["plain", "numpy", "old numpy"])
def test_every_published_form_is_read(prefix, wrapper, extras, make_model, tmp_path: Path) -> None:
    model = make_model("gem", 16, embed_dim=128, num_heads=2)
    weights: dict[str, Any] = {prefix + name: value for name, value in export_weights(model).items()}
    file = tmp_path / "published.pth"
    if wrapper is not None:
        recalls = [90.0, 95.0] if extras == "plain" else np.array([90.0, 95.0])
        best = 180.0 if extras == "plain" else np.float64(180.0)
        weights = {
            "epoch_num": 3,
            wrapper: weights,
            "optimizer_state_dict": {},
            "recalls": recalls,
            "best_r5": best,
        }
    torch.save(weights, file)
    if extras == "old numpy":
        rename_numpy(file)
    loaded = load_checkpoint(str(file))
    assert_same(loaded.model, model)
    assert loaded.card is None
    assert loaded.preprocess.id == "reference-322"


def rename_numpy(file: Path) -> None:
    """Put the module name of numpy before 2.0 into a saved file."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            renamed = data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            archive.writestr(name, renamed if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("data_parallel", [False, True])
def test_a_written_file_is_read_again(data_parallel, make_model, tmp_path: Path) -> None:
    model = make_model("boq", 16)
    file = str(tmp_path / "out.pth")
    write_weights(file, export_weights(model), data_parallel=data_parallel)
    raw = torch.load(file, weights_only=True)["model_state_dict"]
    assert all(name.startswith("module.") == data_parallel for name in raw)
    assert_same(load_checkpoint(file).model, model)


@pytest.mark.parametrize("kind", ["gem", "boq", "salad", None])
@pytest.mark.parametrize("bits", [None, 16])
@pytest.mark.parametrize("registers", [False, True])
def test_the_variant_is_read_from_names_and_shapes(kind, bits, registers, make_model) -> None:
    if kind is None and bits is None:
        return
    name = "vit_small_patch14_reg4_dinov2" if registers else "toy"
    model = make_model(kind, bits, name=name, first_adapted_block=1)
    found = recognise(export_weights(model))
    assert found.float_head == model.config.float_head
    assert found.hash_bits == bits
    assert found.backbone.first_adapted_block == 1
    assert (found.backbone.embed_dim, found.backbone.depth, found.backbone.position_px) == (64, 3, 56)
    assert ("reg4" in found.backbone.name) == registers


def test_the_width_of_the_adapters_is_read_too(tmp_path: Path) -> None:
    backbone = {"name": "toy", "depth": 1, "num_heads": 1, "embed_dim": 64, "position_px": 56}
    config = ModelConfig.model_validate({"backbone": backbone, "float_head": {"kind": "gem", "dim": 8}})
    for hidden in (None, 16, 48):
        model = build_model(config.model_copy(update={"adapter_hidden": hidden}))
        assert recognise(export_weights(model)).adapter_hidden == hidden
        assert model(torch.randn(1, 3, 56, 56)).float.shape == (1, 8)
        save_checkpoint(str(tmp_path / str(hidden)), model, CARD)
        assert load_checkpoint(str(tmp_path / str(hidden))).config.adapter_hidden == hidden


def test_one_error_names_every_weight_that_does_not_fit(make_model, tmp_path: Path) -> None:
    weights = export_weights(make_model())
    del weights["backbone.blocks.2.ls1.gamma"]
    del weights["linear4.bias"]
    weights["linear1.bias"] = torch.zeros(7)
    weights["aggregation.1.q"] = torch.zeros(1)
    weights["backbone.norm2.bias"] = torch.zeros(1)
    file = tmp_path / "wrong.pth"
    torch.save(weights, file)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(file))
    assert str(error.value) == (
        f"checkpoint {file} does not fit the model: "
        "2 missing: backbone.blocks.2.ls1.gamma, linear4.bias; "
        "2 unexpected: aggregation.1.q, backbone.norm2.bias; "
        "1 mis-shaped: linear1.bias is (7,) and should be (64,)"
    )


class Danger:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("print('this must not run')",))


def test_code_in_a_file_is_refused(make_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "danger.pth"
    torch.save({"model_state_dict": export_weights(make_model()), "extra": Danger()}, file)
    with pytest.raises(
        CheckpointError,
        match=r"holds more than weights and is refused: Unsupported global: GLOBAL (builtins\.)?exec$",
    ):
        load_checkpoint(str(file))
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "holds more than weights and is refused: ."),
        (b"", "cannot be read as a weight file: ."),
        (pickle.dumps([1, 2]), "holds more than weights and is refused: ."),
    ],
)
def test_what_is_no_weight_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(file))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "holds a list, not weights by name"),
        ({}, "holds a dict, not weights by name"),
        ({"a": 1, "b": torch.zeros(1)}, "these entries are no tensors of plain values under a name: a"),
        ({"a": torch.zeros(1)}, "no SelaVPR.. checkpoint$"),
        ({"pos_embed": torch.zeros(1)}, "a DINOv2 file: name it as backbone.weights"),
        ({"backbone.pos_embed": torch.zeros(1, 17, 64)}, "0 adapters and no head that is known"),
    ],
)
def test_what_holds_no_model_is_named(record: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "record.pth"
    torch.save(record, file)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(file))


def test_a_missing_or_half_written_checkpoint_is_named(make_model, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no such file: .*nothing"):
        load_checkpoint(str(tmp_path / "nothing"))
    save_checkpoint(str(tmp_path / "half"), make_model(), CARD)
    storage.remove(str(tmp_path / "half" / "card.json"))
    with pytest.raises(StorageError, match=r"has no card\.json: the checkpoint was not finished"):
        load_checkpoint(str(tmp_path / "half"))


def test_weights_and_card_must_belong_together(make_model, tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path / "a"), make_model(seed=1), CARD)
    save_checkpoint(str(tmp_path / "b"), make_model(seed=2), CARD)
    (tmp_path / "a" / "model.pt").write_bytes((tmp_path / "b" / "model.pt").read_bytes())
    with pytest.raises(CheckpointError, match="the folder was changed after it was written"):
        load_checkpoint(str(tmp_path / "a"))


def test_a_card_that_lacks_something_is_not_written(make_model, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="is a required property"):
        save_checkpoint(str(tmp_path), make_model(), {"metrics": {}})
    assert list(tmp_path.iterdir()) == []


def test_the_id_follows_values_names_and_types_but_not_order() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(4.0)[::1]}
    assert weights_id(weights) == weights_id(same)
    others = [
        {**weights, "a": torch.arange(4.0) + 1e-6},
        {**weights, "a": torch.arange(4.0).double()},
        {**weights, "a": torch.arange(4.0).reshape(2, 2)},
        {"c": weights["a"], "b": weights["b"]},
    ]
    assert len({weights_id(weights), *map(weights_id, others)}) == 5


def test_weights_with_views_are_written_without_what_they_view(tmp_path: Path) -> None:
    large = torch.zeros(100_000)
    write_weights(str(tmp_path / "w.pt"), {"a": large[:10]})
    assert (tmp_path / "w.pt").stat().st_size < 5_000
    assert read_weights(str(tmp_path / "w.pt"))["a"].shape == (10,)


@pytest.mark.parametrize(
    ("different", "named"),
    [
        ({"embed_dim": 192, "num_heads": 6}, "num_heads"),
        ({"position_resampling": "dinov2_registers"}, "position_resampling"),
    ],
)
def test_a_model_that_a_published_file_cannot_tell_is_not_written_as_one(
    different: dict[str, Any], named: str, make_model
) -> None:
    assert published_weights(make_model()).keys() == export_weights(make_model()).keys()
    with pytest.raises(CheckpointError, match=f"{named}.*form=folder"):
        published_weights(make_model(**different))


def test_shapes_of_no_model_are_one_sentence(make_model) -> None:
    weights = export_weights(make_model())
    for name, shape in (("linear4.weight", (13, 64)), ("backbone.pos_embed", (17,))):
        with pytest.raises(CheckpointError, match="shapes that no SelaVPR"):
            recognise({**weights, name: torch.zeros(shape)})


def test_strange_entries_are_named(tmp_path: Path) -> None:
    for record in (
        {3: torch.zeros(2)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
    ):
        torch.save(record, tmp_path / "strange.pth")
        with pytest.raises(CheckpointError, match=r"no tensors of plain values under a name: [3a]"):
            read_weights(str(tmp_path / "strange.pth"))


class _Calls:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_a_refusal_names_the_code_and_gives_no_bad_advice(tmp_path: Path) -> None:
    torch.save({"a": _Calls()}, tmp_path / "calls.pth")
    with pytest.raises(CheckpointError) as error:
        read_weights(str(tmp_path / "calls.pth"))
    assert "system" in str(error.value)
    assert "weights_only" not in str(error.value)
