"""Segments image files: label maps as indexed PNG files, and overlays."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vig_jax.config import SegmentationConfig
from vig_jax.data.preprocess.decode import load_checked
from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.data.preprocess.segmentation_views import mask_side
from vig_jax.errors import ConfigError, NonFiniteLossError, UndecodableImageError
from vig_jax.figures import drawable, save_figure
from vig_jax.files import read_regular_file, write_atomically
from vig_jax.inference.file_predictor import PredictOptions, output_names
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.models.backbone import implementation_refusals
from vig_jax.sharding.mesh import make_mesh, place_batch
from vig_jax.tasks.registry import make_task
from vig_jax.tasks.segmentation.drawing import (
    OTHER,
    draw_overlay,
    label_name,
    overlay,
    percent,
    shares,
)
from vig_jax.tasks.segmentation.evaluation import SegmentationEvaluation, window_logits
from vig_jax.tasks.segmentation.label_maps import LabelMaps
from vig_jax.tasks.segmentation.thumbnails import thumbnail_of_image, thumbnail_of_labels
from vig_jax.text import printable

MAX_DRAWN = 40


@dataclasses.dataclass(frozen=True)
class SegmentationPrediction:
    """The classes in one file.

    Attributes:
        path: the file.
        shares: class names with their shares of the pixels, largest first.
        labels: the label map that was written, or None.
        overlay: the overlay that was written, or None.
        damage: why the file is damaged, although it could be read, or None.
        error: the reason why the file could not be read, or None.
        top: number of classes for the console.
    """

    path: Path
    shares: tuple[tuple[str, float], ...] = ()
    labels: Path | None = None
    overlay: Path | None = None
    damage: str | None = None
    error: str | None = None
    top: int = 5

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of JSON values."""
        if self.error:
            return {"image": str(self.path), "error": self.error}
        values: dict[str, Any] = {
            "image": str(self.path),
            "labels": str(self.labels),
            "overlay": str(self.overlay),
            "classes": [{"class": name, "share": round(share, 6)} for name, share in self.shares],
        }
        return values | ({"damage": self.damage} if self.damage else {})

    def __str__(self) -> str:
        """Returns a line for the console."""
        if self.error:
            return printable(f"{self.path}: skipped, {self.error}")
        found = "  ".join(f"{name} {percent(share)}" for name, share in self.shares[: self.top])
        rest = len(self.shares) - self.top
        more = f"  and {rest} more" if rest > 0 else ""
        note = f" ({self.damage})" if self.damage else ""
        return printable(f"{self.path}: {found}{more}{note}")


class SegmentationPredictor:
    """A trained model that finds the class of every pixel of images of any size.

    Images are resized, cut into windows and averaged as in evaluation.

    Args:
        loaded: a trained model for segmentation.

    Raises:
        ConfigError: the model is of another task.

    Attributes:
        class_names: one per class.
        palette: red, green and blue of each class.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        bundle = make_task(loaded.config, loaded.metadata)
        evaluation, preprocess = bundle.evaluation, bundle.eval_preprocess
        if not isinstance(evaluation, SegmentationEvaluation):
            raise ConfigError(
                f"{loaded.description}: the task is {loaded.config.task.name!r}, not segmentation"
            )
        assert isinstance(preprocess, SegmentationPreprocess)
        settings = bundle.config.task
        assert isinstance(settings, SegmentationConfig)
        self.class_names = evaluation.class_names
        self.palette = evaluation.palette
        self._data = bundle.config.data
        self._stored_offset = 1 if settings.reduce_zero_label else 0
        self._preprocess = preprocess
        self._implementation = bundle.config.model.gla_implementation
        self._mesh = make_mesh(jax.local_devices()[:1])
        self._variables = jax.device_put(loaded.variables, self._mesh.devices.item())
        logits_of = functools.partial(window_logits, evaluation.model, self._data)
        self._run = LabelMaps(logits_of, evaluation.inference).compiled(self._mesh)

    def predict(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
        """Returns the class of every pixel.

        The first image compiles the model; an image of another size compiles small programs at
        most.

        Args:
            image: RGB.

        Raises:
            NonFiniteLossError: the model overflows.
        """
        height, width = image.shape[:2]
        arrays = self._preprocess.evaluation_images(image)
        batch = {name: array[None] for name, array in arrays.items()}
        shape = mask_side(height), mask_side(width)
        with implementation_refusals(self._implementation), jax.set_mesh(self._mesh):
            found = self._run(self._variables, place_batch(batch, self._mesh), shape)
        labels = np.asarray(found)[0, :height, :width]
        if (labels == IGNORED).any():
            raise NonFiniteLossError(
                "the logits are not finite; the model overflows. Use float32 "
                "(config.model.dtype of the run)"
            )
        return labels

    def predict_files(
        self, files: Sequence[Path], options: PredictOptions
    ) -> Iterator[SegmentationPrediction]:
        """Writes NAME_labels.png and NAME_overlay.png for each file, and yields its classes.

        A label map is a PNG with a palette. Its pixels are classes, or class + 1 for a model that
        was trained with `reduce_zero_label`, as in its annotations. An unreadable file yields a
        prediction with an error.

        Raises:
            NonFiniteLossError: the model overflows.
        """
        targets = output_names(files)
        for file in files:
            try:
                image, damage = load_checked(read_regular_file(file), self._data)
            except (UndecodableImageError, OSError) as error:
                yield SegmentationPrediction(file, error=str(error))
                continue
            pixels = np.asarray(image)
            labels = self.predict(pixels)
            target = options.output / targets[file]
            target.parent.mkdir(parents=True, exist_ok=True)
            map_file = target.with_name(f"{target.name}_labels.png")
            overlay_file = target.with_name(f"{target.name}_overlay.png")
            self._write_labels(labels, map_file)
            draw_overlay(pixels, labels, self.class_names, self.palette, overlay_file)
            names = tuple((label_name(self.class_names, i), share) for i, share in shares(labels))
            yield SegmentationPrediction(
                file, names, map_file, overlay_file, damage, top=options.top
            )

    def _write_labels(self, labels: UInt8[np.ndarray, "H W"], path: Path) -> None:
        offset = self._stored_offset
        stored = Image.fromarray(labels + np.uint8(offset), mode="P")
        first = [OTHER] if offset else []
        stored.putpalette(bytes(part for colour in (*first, *self.palette) for part in colour))
        with write_atomically(path) as draft, draft.open("wb") as file:
            stored.save(file, format="PNG")

    def draw(self, predictions: Sequence[SegmentationPrediction], path: Path) -> int:
        """Writes a PNG of up to 40 images, each beside its overlay.

        Returns:
            The number of images drawn.
        """
        from matplotlib.figure import Figure

        shown = [prediction for prediction in predictions if not prediction.error][:MAX_DRAWN]
        columns = min(4, max(1, len(shown)))
        rows = max(1, math.ceil(len(shown) / columns))
        figure = Figure(figsize=(4.2 * columns, 2.0 * rows), layout="constrained")
        for number, prediction in enumerate(shown, start=1):
            axes = figure.add_subplot(rows, columns, number)
            axes.set_axis_off()
            axes.imshow(self._pair(prediction))
            found = ", ".join(
                f"{drawable(name, 16)} {share:.0%}" for name, share in prediction.shares[:3]
            )
            axes.set_title(found, fontsize=8)
        save_figure(figure, path)
        return len(shown)

    def _pair(self, prediction: SegmentationPrediction) -> UInt8[np.ndarray, "h w 3"]:
        """Returns a small copy of a file beside its overlay."""
        assert prediction.labels is not None
        image, _ = load_checked(read_regular_file(prediction.path), self._data)
        pixels = np.asarray(image)
        with Image.open(prediction.labels) as stored:
            labels = np.asarray(stored) - np.uint8(self._stored_offset)
        small = thumbnail_of_image(pixels, labels.shape[:2])
        mixed = overlay(small, thumbnail_of_labels(labels), self.palette)
        gap = np.full((len(small), 4, 3), 255, np.uint8)
        return np.concatenate([small, gap, mixed], axis=1)
