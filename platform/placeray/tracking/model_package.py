"""A checkpoint packed as an MLflow model that loads anywhere: weights, card, the code it needs, pinned requirements.

    artifacts/checkpoint/{model.pt,card.json}   the checkpoint folder, as jobs read it
    artifacts/model_card.md
    served_model.py                             what MLflow runs
    code/placeray/                              the rooms that describing needs, with the contracts
    requirements.txt                            public packages in the versions that are running now

MLflow is imported when a model is packed, not before.
"""

import contextlib
import importlib.metadata
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import placeray
from placeray import storage
from placeray.contracts import schema_folder
from placeray.jobspecs.register import StatementConfig
from placeray.model.card import CARD_FILE, WEIGHTS_FILE, bare_card
from placeray.model.checkpoint import LoadedModel, load_checkpoint, save_checkpoint
from placeray.tracking.model_card import model_card
from placeray.tracking.registry import CHECKPOINT

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

SERVED_MODEL = Path(__file__).with_name("served_model.py")
# The model, the ground floor it stands on, and the packages that describing imports from outside: no more, no less.
ROOMS = ("__init__.py", "errors.py", "config.py", "contracts.py", "pictures.py", "storage.py", "model")
PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "jsonschema",
    "fsspec",
)  # fmt: skip
CONFIG = {"device": "auto", "precision": "fp32", "batch_size": 32, "serve_paths": False}


@contextlib.contextmanager
def local_checkpoint(uri: str) -> Iterator[str]:
    """A local folder of `model.pt` and `card.json` alone, whatever form and place the checkpoint has.

    Raises:
        StorageError: there is no finished checkpoint at `uri`.
        CheckpointError: a published file is of no model that is known.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, CHECKPOINT)
        os.makedirs(folder)
        if not storage.exists(storage.join(uri, CARD_FILE)):
            loaded = load_checkpoint(uri)
            save_checkpoint(folder, loaded.model, bare_card(loaded.preprocess.id))
        for name in (WEIGHTS_FILE, CARD_FILE):
            source, copy = storage.resolve(storage.join(uri, name)), os.path.join(folder, name)
            if os.path.exists(copy):
                continue
            if storage.is_remote(source):
                storage.write_bytes(copy, storage.read_bytes(source))
            else:
                shutil.copy(source, copy)  # MLflow takes no links
        yield folder


def pack(
    folder: str, checkpoint: str, loaded: LoadedModel, name: str, statement: StatementConfig, model: "Model"
) -> str:
    """Write the MLflow model of a checkpoint.

    Args:
        folder:     local, new.
        checkpoint: from `local_checkpoint`; `loaded` is the model in it.
        name:       of the registered model, for the card.
        model:      MLflow's record, which says of which logged model and run this is.

    Returns:
        The model card.
    """
    import mlflow

    card = model_card(name, loaded, statement)
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary, "model_card.md")
        page.write_text(card, encoding="utf-8")
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            python_model=str(SERVED_MODEL),
            code_paths=[_copy_of_the_code(temporary)],
            artifacts={CHECKPOINT: checkpoint, "model_card": str(page)},
            signature=_signature(loaded),
            input_example=_example(),
            pip_requirements=requirements(),
            model_config=CONFIG,
        )
    for cache in Path(folder).rglob("__pycache__"):
        shutil.rmtree(cache)
    return card


def requirements() -> list[str]:
    """`torch==2.15.0` and so on: the public packages in the versions that are running; MLflow adds itself."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in PACKAGES]


def _copy_of_the_code(folder: str) -> str:
    """A package `placeray` of ROOMS and the contracts; placeray itself is on no public index."""
    source, copy = Path(placeray.__file__).parent, Path(folder, "placeray")
    copy.mkdir()
    for room in ROOMS:
        if (source / room).is_dir():
            shutil.copytree(source / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source / room, copy / room)
    shutil.copytree(schema_folder(), copy / "schemas")
    return str(copy)


def _signature(loaded: LoadedModel) -> "ModelSignature":
    """Photos by bytes, path or array in; what the branches of this model give out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    outputs: list[Any] = []
    if loaded.model.code_bits:
        outputs.append(ColSpec(DataType.binary, "code"))
    if loaded.model.descriptor_dim:
        outputs.append(ColSpec(Array(DataType.float), "descriptor"))
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.binary, "image", required=False),
                ColSpec(DataType.string, "path", required=False),
                # MLflow has no type for "an array of any size of integers or floats": the model checks it.
                ColSpec(AnyType(), "array", required=False),
            ]
        ),
        outputs=Schema([*outputs, ColSpec(DataType.string, "error", required=False)]),
        params=ParamSchema([ParamSpec("on_error", DataType.string, "raise")]),
    )


def _example() -> Any:
    """A table of one small photo."""
    import pandas as pd

    red, green = np.meshgrid(np.arange(48), np.arange(36), indexing="xy")
    pixels = np.stack([5 * red, 7 * green, 2 * (red + green)], axis=-1).astype(np.uint8)
    photo = io.BytesIO()
    Image.fromarray(pixels).save(photo, "JPEG", quality=90)
    return pd.DataFrame({"image": [photo.getvalue()]})
