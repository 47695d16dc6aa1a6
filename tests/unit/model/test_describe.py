"""Describing photos, folders and arrays, as function and as job."""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from placeray import storage
from placeray.errors import DataError, StorageError
from placeray.model.checkpoint import load_checkpoint, save_checkpoint
from placeray.model.describe import EmbedConfig, describe, describe_inputs
from placeray.model.inputs import PhotoInputs, open_inputs
from placeray.model.preprocess import PreprocessConfig, to_input

CARD = {
    "preprocessing": "platform-56",
    "recipe": None,
    "data_fingerprint": None,
    "metrics": {},
    "created_at": "2025-01-01T00:00:00+00:00",
}
CONFIG = PreprocessConfig(size_px=56)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three photos, one of them cut off, and a text file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("b.jpg", "a.png", "more/c.jpeg"):
        Image.fromarray(random.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def checkpoint(make_model, tmp_path: Path) -> str:
    """A saved tiny model with both branches."""
    folder = str(tmp_path / "checkpoint")
    save_checkpoint(folder, make_model("gem", 16), CARD)
    return folder


def test_arrays_come_out_packed_and_in_float32(make_model, images) -> None:
    model = make_model("gem", 16).train()
    found = describe(model, images)
    assert model.training  # as it came in
    with torch.no_grad():
        expected = model.eval()(images)
    np.testing.assert_array_equal(found.float, expected.float.numpy())
    assert found.float.dtype == np.float32
    np.testing.assert_array_equal(np.unpackbits(found.codes, axis=1) > 0, expected.code.numpy() > 0)
    assert describe(make_model("gem", None), images).codes is None
    assert describe(make_model(None, 16), images.numpy()).float is None


def test_a_model_can_be_trained_after_it_has_described(make_model, images) -> None:
    """Positions are remembered across inference mode; backward must not meet them."""
    model = make_model("gem", 16)
    wide = torch.nn.functional.pad(images, (0, 28))
    describe(model, wide)
    model.train()(wide).float.sum().backward()


def test_bf16_is_close(make_model, images) -> None:
    model = make_model("gem", 16)
    exact, found = describe(model, images), describe(model, images, "bf16")
    assert found.float.dtype == np.float32
    assert (exact.float * found.float).sum(1).min() > 0.999
    assert not np.array_equal(exact.float, found.float)


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_a_folder_is_described_in_order_of_names_and_bad_photos_are_left_out(
    batch_size: int, photos: Path, make_model
) -> None:
    model = make_model("gem", 16)
    inputs = open_inputs(str(photos), CONFIG)
    found = describe_inputs(model, inputs, EmbedConfig(batch_size=batch_size))
    kept = [photos / "a.png", photos / "more" / "c.jpeg"]
    assert inputs.accepted == list(map(str, kept))
    assert [uri for uri, _ in inputs.rejected] == [str(photos / "b.jpg")]
    assert len(inputs) == 3
    batch = torch.stack([to_input(Image.open(path).convert("RGB"), CONFIG) for path in kept])
    np.testing.assert_allclose(found.float, describe(model, batch).float, atol=1e-6)


@pytest.mark.parametrize("target", ["gone.png", "/proc/self/mem"])
def test_a_photo_that_cannot_be_read_is_left_out_like_one_that_cannot_be_decoded(
    target: str, photos: Path, make_model
) -> None:
    """A link to nothing, and a file whose reading fails."""
    if target.startswith("/") and not Path(target).exists():
        pytest.skip("needs a file that is there and cannot be read, as Linux has one")
    (photos / "b.jpg").unlink()
    (photos / "b.jpg").symlink_to(target)
    inputs = open_inputs(str(photos), CONFIG)
    describe_inputs(make_model("gem", 16), inputs, EmbedConfig())
    assert [Path(uri).name for uri in inputs.accepted] == ["a.png", "c.jpeg"]
    ((uri, reason),) = inputs.rejected
    assert uri == str(photos / "b.jpg")
    assert reason.startswith("cannot read the file: ")


def test_a_store_that_fails_is_no_fault_of_a_photo(monkeypatch, make_model) -> None:
    inputs = PhotoInputs(["s3://bucket/a.jpg"], CONFIG)

    def fail(uri: str) -> bytes:
        raise StorageError(f"{uri}: the object store does not answer")

    monkeypatch.setattr(storage, "read_bytes", fail)
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    with pytest.raises(DataError, match=r"none of the inputs could be described: s3://bucket/a\.jpg"):
        describe_inputs(make_model(), inputs, EmbedConfig())
    monkeypatch.setattr(storage, "exists", lambda uri: True)
    with pytest.raises(StorageError, match="does not answer"):
        describe_inputs(make_model(), inputs, EmbedConfig())


def test_an_array_goes_in_as_it_is(tmp_path: Path, make_model, images) -> None:
    model = make_model("gem", 16)
    np.save(tmp_path / "images.npy", images.numpy())
    found = describe_inputs(
        model, open_inputs(str(tmp_path / "images.npy"), CONFIG), EmbedConfig(batch_size=3)
    )
    np.testing.assert_allclose(found.float, describe(model, images).float, atol=1e-6)
    np.testing.assert_array_equal(found.codes, describe(model, images).codes)


@pytest.mark.parametrize(
    "array", [np.zeros((1, 3, 8, 8)), np.zeros((3, 8, 8), np.float32), np.zeros((1, 8, 8, 3), np.float32)]
)
def test_an_array_of_another_kind_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(DataError, match=r"wanted is float32 \(N, 3, H, W\)"):
        open_inputs(str(tmp_path / "images.npy"), CONFIG)


def test_what_is_no_input_is_named(tmp_path: Path, make_model) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        open_inputs(str(tmp_path / "nowhere"), CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no photo"):
        open_inputs(str(tmp_path / "empty"), CONFIG)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match="is no numpy array"):
        open_inputs(str(tmp_path / "text.npy"), CONFIG)
    (tmp_path / "bad.jpg").write_text("no photo")
    with pytest.raises(DataError, match="none of the inputs could be described"):
        describe_inputs(make_model(), open_inputs(str(tmp_path / "bad.jpg"), CONFIG), EmbedConfig())


def run_job(name: str, monkeypatch, repository: Path, **values: str) -> None:
    arguments = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(repository / "jobs" / f"{name}.py"), run_name="__main__")


def test_the_describe_job(checkpoint, photos, tmp_path, monkeypatch, repository, capsys) -> None:
    output = str(tmp_path / "out.npz")
    run_job("describe", monkeypatch, repository, checkpoint=checkpoint, inputs=str(photos), output=output)
    said = capsys.readouterr().out
    assert "rejected " + str(photos / "b.jpg") in said
    assert "read 3, kept 2, rejected 1" in said
    found = np.load(output)
    assert found["float"].shape == (2, 24)
    assert found["codes"].shape == (2, 2)
    assert [Path(name).name for name in found["inputs"]] == ["a.png", "c.jpeg"]
    expected = describe_inputs(
        load_checkpoint(checkpoint).model, open_inputs(str(photos), CONFIG), EmbedConfig()
    )
    np.testing.assert_allclose(found["float"], expected.float, atol=1e-6)


def test_a_bad_photo_whose_name_is_no_utf8_is_named_too(
    checkpoint, photos, tmp_path, monkeypatch, repository, capsys
) -> None:
    (photos / "b.jpg").rename(photos / os.fsdecode(b"caf\xe9.jpg"))
    output = str(tmp_path / "out.npz")
    run_job("describe", monkeypatch, repository, checkpoint=checkpoint, inputs=str(photos), output=output)
    said = capsys.readouterr().out
    assert f"rejected {photos}/caf\\udce9.jpg: cannot decode the image" in said
    assert "read 3, kept 2, rejected 1" in said


@pytest.mark.parametrize("name", ["describe", "heatmap", "convert"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(
    name, photos, tmp_path, monkeypatch, repository, capsys
) -> None:
    """Even before the checkpoint is opened: there is none."""
    (tmp_path / "file").write_text("no folder")
    values = {"checkpoint": str(tmp_path / "none"), "output": str(tmp_path / "file" / "out.npz")}
    if name != "convert":
        values["inputs"] = str(photos)
    with pytest.raises(SystemExit):
        run_job(name, monkeypatch, repository, **values)
    assert f"cannot write {values['output']}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


@pytest.mark.parametrize("form", ["folder", "published", "hub"])
def test_the_convert_job(form, checkpoint, tmp_path, monkeypatch, repository, capsys) -> None:
    output = str(tmp_path / "converted")
    run_job("convert", monkeypatch, repository, checkpoint=checkpoint, output=output, form=form)
    loaded, again = load_checkpoint(checkpoint), load_checkpoint(output)
    assert again.model_id == loaded.model_id
    assert again.preprocess.id == ("platform-56" if form == "folder" else "reference-322")
    said = capsys.readouterr().out
    assert loaded.model_id in said
    assert "code branch    16 bits" in said
    total = sum(value.numel() for value in loaded.model.parameters())
    assert f"{total:>11,} in all" in said


@pytest.mark.slow
def test_a_compiled_model_describes_alike(make_model, images) -> None:
    """Any shape and both sets of branches; compiling takes a minute."""
    model = make_model("gem", 16)
    config = EmbedConfig(batch_size=4, compile=True)
    for size in (56, 70):
        inputs = Batches(torch.nn.functional.interpolate(images, size=(size, 56)))
        found = describe_inputs(model, inputs, config)
        expected = describe_inputs(model, inputs, config.model_copy(update={"compile": False}))
        np.testing.assert_allclose(found.float, expected.float, atol=1e-5)
        assert np.unpackbits(found.codes ^ expected.codes).sum() <= 1


class Batches:
    """Inputs that are at hand."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def batches(self, batch_size: int):
        """(B, 3, H, W)."""
        yield from self.images.split(batch_size)


@pytest.mark.parametrize("kind", ["gem", None])
def test_descriptors_that_are_not_finite_are_refused(kind, make_model, images) -> None:
    with pytest.raises(DataError, match="not finite"):
        describe(make_model(kind, 16), torch.full_like(images, float("nan")))
