"""Segments image files: label maps as indexed PNG files, and overlays."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vig_jax.config import SegmentationConfig
from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.data.preprocess.segmentation_views import mask_side
from vig_jax.errors import ConfigError, NonFiniteLossError, UndecodableImageError
from vig_jax.figures import drawable
from vig_jax.files import write_atomically
from vig_jax.inference.dense import DensePrediction, read_image
from vig_jax.inference.file_predictor import PredictOptions, check_one_device, output_names
from vig_jax.inference.grid import draw_grid
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationPrediction(DensePrediction):
    """The classes in one file.

    Attributes:
        shares: class names with their shares of the pixels, largest first.
        labels: the label map that was written, or None.
        overlay: the overlay that was written, or None.
    """

    shares: tuple[tuple[str, float], ...] = ()
    labels: Path | None = None
    overlay: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Returns the files that were written, and the classes."""
        return {
            "labels": str(self.labels),
            "overlay": str(self.overlay),
            "classes": [{"class": name, "share": round(share, 6)} for name, share in self.shares],
        }

    def phrases(self) -> list[str]:
        """Returns the classes with their shares."""
        return [f"{name} {percent(share)}" for name, share in self.shares]


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
            ConfigError: `options` has a mesh.
        """
        check_one_device(options)
        targets = output_names(files)
        for file in files:
            try:
                pixels, damage = read_image(file, self._data)
            except (UndecodableImageError, OSError) as error:
                yield SegmentationPrediction(path=file, error=str(error))
                continue
            labels = self.predict(pixels)
            target = options.output / targets[file]
            target.parent.mkdir(parents=True, exist_ok=True)
            map_file = target.with_name(f"{target.name}_labels.png")
            overlay_file = target.with_name(f"{target.name}_overlay.png")
            self._write_labels(labels, map_file)
            draw_overlay(pixels, labels, self.class_names, self.palette, overlay_file)
            names = tuple((label_name(self.class_names, i), share) for i, share in shares(labels))
            yield SegmentationPrediction(
                path=file,
                shares=names,
                labels=map_file,
                overlay=overlay_file,
                damage=damage,
                top=options.top,
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
        return draw_grid(predictions, path, self._draw_cell, columns=4, cell=(4.2, 2.0))

    def _draw_cell(self, axes: Any, prediction: SegmentationPrediction) -> None:
        axes.set_axis_off()
        axes.imshow(self._pair(prediction))
        found = ", ".join(
            f"{drawable(name, 16)} {share:.0%}" for name, share in prediction.shares[:3]
        )
        axes.set_title(found, fontsize=8)

    def _pair(self, prediction: SegmentationPrediction) -> UInt8[np.ndarray, "h w 3"]:
        """Returns a small copy of a file beside its overlay."""
        assert prediction.labels is not None
        pixels, _ = read_image(prediction.path, self._data)
        with Image.open(prediction.labels) as stored:
            labels = np.asarray(stored) - np.uint8(self._stored_offset)
        small = thumbnail_of_image(pixels, labels.shape[:2])
        mixed = overlay(small, thumbnail_of_labels(labels), self.palette)
        gap = np.full((len(small), 4, 3), 255, np.uint8)
        return np.concatenate([small, gap, mixed], axis=1)
