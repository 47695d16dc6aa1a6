"""The registered model as MLflow runs it: photos in, packed codes and float descriptors out.

MLflow copies this file into the model and executes it when the model is loaded ("models from code"), beside a copy of
the rooms that it imports: no object of ours is pickled, and neither placeray nor Ray need be installed there. Nothing
else may import this file: its last line hands the model to MLflow.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image
from torch import Tensor

from placeray import storage
from placeray.errors import DataError, PlacerayError
from placeray.model.checkpoint import load_checkpoint
from placeray.model.describe import Described, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input, to_input

COLUMNS = ("image", "path", "array")
# MLflow sets it in a scoring server (mlflow 3.17): whoever can reach the port must not read the server's files.
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class Row(NamedTuple):
    """What became of one photo: its input, or why there is none."""

    input: Tensor | None  # (3, H, W) float32, normalised
    error: str | None


class PhotoDescriber(PythonModel):
    """A checkpoint that describes tables of photos.

    Its configuration, which `load_model(uri, model_config={...})` overrides: `device` (auto, cpu, cuda),
    `precision` (fp32, bf16, fp16), `batch_size`, `serve_paths` (whether a scoring server opens paths it is sent).
    """

    def load_context(self, context: Any) -> None:
        """Load the checkpoint inside the model; MLflow calls this once."""
        self._config = dict(context.model_config)
        loaded = load_checkpoint(context.artifacts["checkpoint"])
        device = self._config["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = loaded.model.to(device)
        self._preprocess = loaded.preprocess

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Describe a table of photos.

        Args:
            model_input: each row has its photo in one of the columns `image` (bytes of a JPEG, PNG ...), `path`
                (a file or uri) and `array` (uint8 (H, W, 3) RGB, or float32 (3, H, W) normalised as the network
                wants it; nested lists of integers or of floats are the same).
            params: `on_error`: `raise` refuses the table for one unreadable photo; `row` leaves the row's
                descriptor empty and says why in a column `error`.

        Returns:
            One row for each, in order: `code`, bits / 8 bytes, component 0 the highest bit of byte 0; `descriptor`,
            (D,) float32 of unit length. A branch that the model has not has no column.

        Raises:
            MlflowException: a photo cannot be read; the sentence names its row. A scoring server answers 400 with it.
        """
        on_error = (params or {}).get("on_error", "raise")
        if on_error not in ("raise", "row"):
            raise _refused(f"on_error is {on_error!r}; known are 'raise' and 'row'")
        if not set(COLUMNS) & set(model_input.columns):
            raise _refused(f"the table has none of the columns {', '.join(COLUMNS)}: put the photos into one")
        rows, answers = list(model_input.to_dict("records")), []
        for start in range(0, len(rows), self._config["batch_size"]):
            batch = rows[start : start + self._config["batch_size"]]
            read = [self._read(row, start + i) for i, row in enumerate(batch)]
            wrong = [row.error for row in read if row.error is not None]
            if wrong and on_error == "raise":
                raise _refused(wrong[0])
            answers += self._describe(read)
        return _table(answers, self._model.code_bits > 0, self._model.descriptor_dim > 0, on_error)

    def _read(self, row: dict[str, Any], number: int) -> Row:
        try:
            given = {name: row[name] for name in COLUMNS if name in row and not _absent(row[name])}
            if len(given) != 1:
                raise DataError(f"it has {', '.join(given) or 'no photo'}; fill one of {', '.join(COLUMNS)}")
            kind, value = next(iter(given.items()))
            made = _array_input(value, self._preprocess) if kind == "array" else self._photo(kind, value)
            self._model.backbone.grid(made[None])  # says which sizes the network takes
            return Row(made, None)
        except PlacerayError as error:
            return Row(None, f"row {number}: {error}")

    def _photo(self, kind: str, value: Any) -> Tensor:
        data = self._file(value) if kind == "path" else value
        if not isinstance(data, bytes):
            raise DataError(f"image is a {type(data).__name__}, not the bytes of a photo")
        return decode_to_input(data, self._preprocess)

    def _file(self, path: Any) -> bytes:
        if os.environ.get(SERVING) == "true" and not self._config["serve_paths"]:
            raise DataError(
                "this server opens no paths: send the photo's bytes in the column image, or set serve_paths"
            )
        return storage.read_bytes(str(path))

    def _describe(self, rows: list[Row]) -> list[tuple[Any, Any, str | None]]:
        """(code, descriptor, error) of every row; neighbours of one size go through the model together."""
        found: list[tuple[Any, Any]] = []
        good = [row.input for row in rows if row.input is not None]
        for _, same in itertools.groupby(good, key=lambda item: item.shape):
            found += _split(describe(self._model, torch.stack(list(same)), self._config["precision"]))
        answers: Iterator[tuple[Any, Any]] = iter(found)
        return [(None, None, row.error) if row.input is None else (*next(answers), None) for row in rows]


def _split(described: Described) -> list[tuple[Any, Any]]:
    rows = len(described.float if described.float is not None else described.codes)  # type: ignore[arg-type]
    codes = [None] * rows if described.codes is None else [code.tobytes() for code in described.codes]
    floats = [None] * rows if described.float is None else list(described.float)
    return list(zip(codes, floats, strict=True))


def _table(
    answers: list[tuple[Any, Any, str | None]], codes: bool, floats: bool, on_error: str
) -> pd.DataFrame:
    names = {"code": codes, "descriptor": floats, "error": on_error == "row"}
    columns = {
        name: pd.Series([answer[i] for answer in answers], dtype=object)
        for i, (name, wanted) in enumerate(names.items())
        if wanted
    }
    return pd.DataFrame(columns)


def _array_input(value: Any, preprocess: PreprocessConfig) -> Tensor:
    """(3, H, W) float32 of an array: integers are the pixels of a photo, floats are normalised already."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, dtype=object)  # rows of different lengths
    kind = array.dtype.kind if array.ndim == 3 and array.size else "none"
    if kind in "iu" and array.shape[2] == 3 and array.min() >= 0 and array.max() <= 255:
        return to_input(Image.fromarray(array.astype(np.uint8)), preprocess)
    if kind == "f" and array.shape[0] == 3:
        return torch.from_numpy(np.array(array, dtype=np.float32))
    raise DataError(
        f"array is {array.dtype} {array.shape}; wanted is uint8 (H, W, 3), RGB, or float32 (3, H, W), normalised"
    )


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _refused(sentence: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(sentence)


set_model(PhotoDescriber())
