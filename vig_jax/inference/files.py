"""Classifies image files."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from kernels_pallas.core.integers import cdiv
from vig_jax.config import DataConfig
from vig_jax.data.datasets.fashion_mnist import folder_name
from vig_jax.data.formats.image_folder import find_image_files
from vig_jax.data.preprocess.decode import decode, load_checked
from vig_jax.data.preprocess.geometry import draw_view, image_size
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.data.preprocess.native import NativePreprocess, RowShape
from vig_jax.errors import (
    ConfigError,
    NonFiniteLossError,
    UndecodableImageError,
    UnreadableRecordError,
)
from vig_jax.figures import drawable
from vig_jax.files import read_regular_file
from vig_jax.inference.file_predictor import PredictOptions
from vig_jax.inference.grid import draw_grid
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.inference.packing import PackedPredictor, packed_predictor
from vig_jax.inference.predictor import Predictor, predictor
from vig_jax.models import Backbone, ViG
from vig_jax.models.from_config import model_from_config
from vig_jax.sharding.mesh import batch_devices
from vig_jax.text import printable


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes predicted for one file.

    Attributes:
        path: the file.
        top: class names with probabilities, most likely first; empty if there is an error.
        error: the reason why the file could not be read, or None.
        damage: what is wrong with a JPEG that was decoded in spite of damage, or None.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    damage: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of JSON values."""
        if self.error:
            return {"image": str(self.path), "error": self.error}
        top = [{"class": name, "probability": round(p, 6)} for name, p in self.top]
        damage = {"damage": self.damage} if self.damage else {}
        return {"image": str(self.path), "top": top, **damage}

    def __str__(self) -> str:
        """Returns a line for the console."""
        if self.error:
            return printable(f"{self.path}: skipped, {self.error}")
        found = "  ".join(f"{name} {p:.1%}" for name, p in self.top)
        note = f" ({self.damage})" if self.damage else ""
        return printable(f"{self.path}: {found}{note}")


_MANY_FILES = 100
"""The number of files from which loading the fast resize pays: it takes half a second."""


class Classifier:
    """A trained model that predicts the classes of image files."""

    def __init__(
        self, model: Backbone, variables: Any, data: DataConfig, class_names: Sequence[str]
    ) -> None:
        self.data = data
        self.class_names = tuple(class_names)
        self._model = model
        self._variables = variables
        self._predictors: dict[tuple[int, Mesh | None], Predictor | PackedPredictor] = {}

    @classmethod
    def from_loaded(cls, loaded: LoadedModel) -> "Classifier":
        """Returns a classifier from a loaded model.

        Raises:
            ConfigError: the model has no head.
        """
        if not loaded.config.model.num_classes:
            raise ConfigError(
                f"{loaded.description}: there is no head, so it cannot classify; fine-tune the "
                "weights with config.init_weights"
            )
        model = model_from_config(loaded.config.model)
        class_names = loaded.metadata.get("class_names", ())
        return cls(model, loaded.variables, loaded.config.data, class_names)

    def predict_files(self, files: Sequence[Path], options: PredictOptions) -> Iterator[Prediction]:
        """Yields predictions; see `vig_jax.inference.file_predictor.FilePredictor`."""
        return self.predict(
            files, top=options.top, batch_size=options.batch_size, mesh=options.mesh
        )

    def draw(self, predictions: Sequence[Prediction], path: Path) -> int:
        """Writes a PNG of images with their most likely classes, and returns their number."""
        return draw(predictions, path, self.class_names, self.data.max_image_pixels)

    def predict(
        self,
        files: Sequence[Path],
        *,
        top: int = 5,
        batch_size: int = 64,
        mesh: Mesh | None = None,
    ) -> Iterator[Prediction]:
        """Yields predictions in the order of `files`; for an unreadable file one with an error.

        Args:
            files: image files.
            top: classes per image.
            batch_size: the most images per call of the model; rounded up to what `mesh` can split.
            mesh: devices that share the work; None: one device.
        """
        devices = batch_devices(mesh) if mesh else 1
        batch_size = devices * cdiv(max(1, min(batch_size, len(files))), devices)
        run, data = self._predictor(batch_size, mesh), self.data
        if len(files) < _MANY_FILES and data.resize == "auto":
            data = dataclasses.replace(data, resize="pillow")
        for start in range(0, len(files), batch_size):
            yield from self._predict_batch(run, data, files[start : start + batch_size], top)

    def _predictor(self, batch_size: int, mesh: Mesh | None) -> Predictor | PackedPredictor:
        """Returns the predictor for a batch size, compiled on first use."""
        if (batch_size, mesh) not in self._predictors:
            data = self.data
            options: dict[str, Any] = {"mean": data.mean, "std": data.std, "mesh": mesh}
            run: Predictor | PackedPredictor
            if data.native_sizes:
                shape, devices = self._row_shape(), batch_devices(mesh) if mesh else 1
                run = packed_predictor(
                    self._model,
                    self._variables,
                    tokens=shape.tokens,
                    rows=devices * cdiv(batch_size, devices * shape.images),
                    most_images=shape.images,
                    **options,
                )
            else:
                size = data.eval_size or data.image_size
                run = predictor(self._model, self._variables, batch_size, size, **options)
            self._predictors[batch_size, mesh] = run
        return self._predictors[batch_size, mesh]

    def _row_shape(self) -> RowShape:
        """Returns the shape of rows of images at their native sizes."""
        assert isinstance(self._model, ViG)
        return RowShape.from_data(self.data, self._model.patch_size)

    def _pixels(
        self, file: Path, data: DataConfig
    ) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
        """Returns the pixels of an image file as in evaluation, and its damage or None."""
        content = read_regular_file(file)
        if not data.native_sizes:
            return _view(content, data)
        image, damage = load_checked(content, data)
        return NativePreprocess(data, self._row_shape(), train=False).whole(image), damage

    def _predict_batch(
        self,
        run: Predictor | PackedPredictor,
        data: DataConfig,
        files: Sequence[Path],
        top: int,
    ) -> Iterator[Prediction]:
        size = (run.patch_size,) * 2 if isinstance(run, PackedPredictor) else run.image_size
        images = [np.zeros((*size, 3), np.uint8)] * len(files)
        errors: dict[int, str] = {}
        damages: dict[int, str | None] = {}
        for row, file in enumerate(files):
            try:
                images[row], damages[row] = self._pixels(file, data)
            except (UndecodableImageError, OSError) as error:
                errors[row] = str(error)
        if isinstance(run, PackedPredictor):
            logits = np.asarray(run(images))
        else:
            logits = np.asarray(run(np.stack(images)))
        for row, file in enumerate(files):
            if row not in errors and not np.isfinite(logits[row]).all():
                raise NonFiniteLossError(
                    f"{file}: the logits are not finite; the model overflows. Use float32 "
                    "(config.model.dtype of the run, --set dtype=float32 for a weight file)"
                )
        probabilities = _softmax(logits)
        for row, file in enumerate(files):
            if row in errors:
                yield Prediction(file, (), errors[row])
                continue
            order = np.argsort(-probabilities[row], kind="stable")[:top].tolist()
            names = tuple((self._name(i), float(probabilities[row, i])) for i in order)
            yield Prediction(file, names, damage=damages[row])

    def _name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"


def _softmax(logits: Float[np.ndarray, "N classes"]) -> Float[np.ndarray, "N classes"]:
    """Returns probabilities. JAX would compile five programs for it."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Returns the named files and every image file below the named folders, sorted.

    Hidden files and folders below them, and the metadata of Macs, are left out.

    Raises:
        FileNotFoundError: a path does not exist, or there is no image file at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [path / name for name in find_image_files(path)]
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder at {path}")
    if not files:
        raise FileNotFoundError(f"no image files in {', '.join(map(str, paths))}")
    return files


def load_images(files: Sequence[Path], data: DataConfig) -> UInt8[np.ndarray, "N H W 3"]:
    """Returns the pixels of image files, prepared as in evaluation.

    Args:
        files: image files.
        data: the settings of the images; see `vig_jax.data_config`.

    Raises:
        UndecodableImageError: a file is no image; the message names it.
        OSError: a file cannot be read.
    """
    images = []
    for file in files:
        try:
            images.append(_view(read_regular_file(file), data)[0])
        except (UndecodableImageError, UnreadableRecordError) as error:
            raise UndecodableImageError(f"{file}: {error}") from error
    return np.stack(images)


def _view(content: bytes, data: DataConfig) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
    """Returns the pixels of an image as in evaluation, and the damage that was found, or None."""
    image, damage = load_checked(content, data)
    return draw_view(image_size(image), data, None).image(image), damage


def draw(
    predictions: Sequence[Prediction],
    path: Path,
    class_names: Sequence[str],
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Writes a PNG of up to 40 images with their most likely classes.

    If the name of an image's folder is a class, it is the true label: a correct prediction is
    green, a wrong one is red with the label below it.

    Args:
        predictions: those with an error are left out.
        path: of the PNG.
        class_names: of the model.
        max_pixels: the limit with which the images were read.

    Returns:
        The number of images drawn.
    """
    by_folder = {folder_name(name): name for name in class_names}

    def draw_cell(axes: Any, prediction: Prediction) -> None:
        axes.set_axis_off()
        axes.imshow(np.asarray(decode(read_regular_file(prediction.path), max_pixels)))
        (guess, probability), folder = prediction.top[0], prediction.path.parent.name
        color, text = "black", f"{drawable(guess, 22)} {probability:.0%}"
        if label := by_folder.get(folder):
            color = "tab:green" if guess == label else "tab:red"
            text += "" if guess == label else f"\n(true: {drawable(label, 22)})"
        axes.set_title(text, fontsize=8, color=color)

    return draw_grid(predictions, path, draw_cell, columns=8, cell=(1.5, 1.75))
