"""Finds objects in image files: drawings, and a file in COCO's format."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.errors import ConfigError, NonFiniteLossError, UndecodableImageError
from vig_jax.evaluation.evaluate import make_predict_step
from vig_jax.figures import drawable
from vig_jax.files import to_json, write_text
from vig_jax.inference.dense import DensePrediction, read_image
from vig_jax.inference.file_predictor import PredictOptions, check_one_device, output_names
from vig_jax.inference.grid import draw_grid
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.metrics.coco_matching import Found
from vig_jax.models.backbone import implementation_refusals
from vig_jax.ops import rle
from vig_jax.sharding.mesh import make_mesh, place_batch
from vig_jax.tasks.detection.drawing import draw_found, draw_objects, objects_at
from vig_jax.tasks.detection.evaluation import DetectionEvaluation
from vig_jax.tasks.detection.found import coco_rows, found_in_image, kept_above
from vig_jax.tasks.registry import make_task
from vig_jax.tasks.segmentation.drawing import label_name
from vig_jax.tasks.segmentation.thumbnails import thumbnail_of_image
from vig_jax.text import printable

DETECTIONS_FILE = "detections.json"
_CELL = 2.6  # inches, of an image in the figure


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DetectionPrediction(DensePrediction):
    """The objects in one file.

    Attributes:
        size: width and height of the image, pixels.
        found: the objects, those with high scores first; None if there is an error.
        names: of the objects' classes.
        rows: the objects in COCO's format.
        drawing: the drawing that was written, or None.
    """

    nothing = "no objects"

    size: tuple[int, int] = (0, 0)
    found: Found | None = None
    names: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    drawing: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Returns the size of the image, the file of the drawing and the objects."""
        width, height = self.size
        detections = [
            {"class": name, **row} for name, row in zip(self.names, self.rows, strict=True)
        ]
        return {
            "width": width,
            "height": height,
            "drawing": str(self.drawing),
            "detections": detections,
        }

    def phrases(self) -> list[str]:
        """Returns the classes of the objects with their scores."""
        scores = [row["score"] for row in self.rows]
        return [f"{name} {score:.0%}" for name, score in zip(self.names, scores, strict=True)]


class DetectionPredictor:
    """A trained model that finds the objects in images of any size.

    Images are resized and padded as in evaluation. A program is compiled for each of
    `config.task.buckets` that occurs.

    Args:
        loaded: a trained model for detection.

    Raises:
        ConfigError: the model is of another task.

    Attributes:
        class_names: one per class.
        palette: red, green and blue of each class.
        category_ids: number of each class in COCO's format.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        bundle = make_task(loaded.config, loaded.metadata)
        evaluation, preprocess = bundle.evaluation, bundle.eval_preprocess
        if not isinstance(evaluation, DetectionEvaluation):
            raise ConfigError(
                f"{loaded.description}: the task is {loaded.config.task.name!r}, not detection"
            )
        assert isinstance(preprocess, DetectionPreprocess)
        self.class_names = evaluation.class_names
        self.palette = evaluation.palette
        self.category_ids = evaluation.category_ids
        self._data = bundle.config.data
        self._inputs = tuple(evaluation.batch_spec)
        self._preprocess = preprocess
        self._implementation = bundle.config.model.gla_implementation
        self._mesh = make_mesh(jax.local_devices()[:1])
        self._variables = jax.device_put(loaded.variables, self._mesh.devices.item())
        self._run = make_predict_step(evaluation, mesh=self._mesh)

    def predict(self, image: UInt8[np.ndarray, "H W 3"], threshold: float = 0.0) -> Found:
        """Returns the objects of an image in its pixels, those with high scores first.

        Args:
            image: RGB.
            threshold: least score.

        Raises:
            NonFiniteLossError: the model overflows.
        """
        height, width = image.shape[:2]
        example = {"image": image, "size": (width, height), "image_id": 0}
        arrays = self._preprocess(example, None)
        batch = {name: arrays[name][None] for name in self._inputs}
        with implementation_refusals(self._implementation), jax.set_mesh(self._mesh):
            outputs = jax.device_get(self._run(self._variables, place_batch(batch, self._mesh)))
        outputs.pop("candidates")
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise NonFiniteLossError(
                "boxes, scores or masks are not finite; the model overflows. Use float32 "
                "(config.model.dtype of the run)"
            )
        first = {name: values[0] for name, values in outputs.items()}
        found = found_in_image(first, arrays["scale"], arrays["original"])
        return kept_above(found, threshold)

    def predict_files(
        self, files: Sequence[Path], options: PredictOptions
    ) -> Iterator[DetectionPrediction]:
        """Writes NAME_objects.png for each file and at the end detections.json; yields the objects.

        `detections.json` is a data set in COCO's format: images, categories, and annotations with
        scores. An unreadable file yields a prediction with an error.

        Raises:
            NonFiniteLossError: the model overflows.
            ConfigError: `options` has a mesh.
        """
        check_one_device(options)
        targets = output_names(files)
        done: list[DetectionPrediction] = []
        for file in files:
            try:
                pixels, damage = read_image(file, self._data)
            except (UndecodableImageError, OSError) as error:
                yield DetectionPrediction(path=file, error=str(error))
                continue
            found = self.predict(pixels, options.threshold)
            drawing = options.output / f"{targets[file]}_objects.png"
            draw_found(pixels, found, self.class_names, self.palette, drawing)
            prediction = DetectionPrediction(
                path=file,
                size=(pixels.shape[1], pixels.shape[0]),
                found=found,
                names=tuple(label_name(self.class_names, i) for i in found.labels.tolist()),
                rows=tuple(coco_rows(found, len(done) + 1, self.category_ids)),
                drawing=drawing,
                damage=damage,
                top=options.top,
            )
            done.append(prediction)
            yield prediction
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / DETECTIONS_FILE, to_json(self._as_data_set(done), indent=None))

    def _as_data_set(self, predictions: Sequence[DetectionPrediction]) -> dict[str, Any]:
        """Returns the objects as a data set in COCO's format."""
        images = []
        annotations: list[dict[str, Any]] = []
        for number, prediction in enumerate(predictions, start=1):
            width, height = prediction.size
            name = printable(str(prediction.path))
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            assert prediction.found is not None
            masks = prediction.found.masks
            for i, row in enumerate(prediction.rows):
                area = row["bbox"][2] * row["bbox"][3] if masks is None else rle.area(masks[i])
                ids = {"id": len(annotations) + 1, "iscrowd": 0, "area": area}
                annotations.append(row | ids)
        categories = [
            {"id": number, "name": label_name(self.class_names, label)}
            for label, number in enumerate(self.category_ids)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def draw(self, predictions: Sequence[DetectionPrediction], path: Path) -> int:
        """Writes a PNG of up to 40 images with their objects.

        Returns:
            The number of images drawn.
        """
        return draw_grid(predictions, path, self._draw_cell, columns=5, cell=(_CELL, _CELL + 0.2))

    def _draw_cell(self, axes: Any, prediction: DetectionPrediction) -> None:
        """Draws a small copy of a file with its objects."""
        assert prediction.found is not None
        image, _ = read_image(prediction.path, self._data)
        size = prediction.size[::-1]
        small = thumbnail_of_image(image, size)
        shape = small.shape[0], small.shape[1]
        chosen = np.arange(len(prediction.names))
        axes.set_title(drawable(prediction.path.name, 30), fontsize=8)
        draw_objects(
            axes,
            small,
            objects_at(prediction.found, chosen, size, shape),
            self.class_names,
            self.palette,
            pixels=max(shape) / (0.95 * _CELL * 72),
            fontsize=6.0,
        )
