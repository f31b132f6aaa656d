"""Predictions for image files, by the task of a model."""

import dataclasses
import os
import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh

from vig_jax.errors import ConfigError
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.tasks.registry import get_task


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of `vig predict`; a task uses those that it needs.

    Attributes:
        top: number of classes to print for an image.
        batch_size: images per call of the model, if all have one size.
        output: folder for files that belong to an image.
        threshold: least score of a detection.
        mesh: devices that share the work of a classifier; None: one device.
    """

    top: int = 5
    batch_size: int = 64
    output: Path = Path("predictions")
    threshold: float = 0.3
    mesh: Mesh | None = None


@runtime_checkable
class FilePrediction(Protocol):
    """The prediction for one file; `str(prediction)` is a line for the console."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def error(self) -> str | None:
        """The reason why the file could not be read, or None."""

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary of JSON values."""


@runtime_checkable
class FilePredictor(Protocol):
    """A trained model that predicts for image files."""

    def predict_files(
        self, files: Sequence[Path], options: PredictOptions
    ) -> Iterator[FilePrediction]:
        """Yields predictions in the order of `files`; for an unreadable file one with an error."""

    def draw(self, predictions: Sequence[Any], path: Path) -> int:
        """Writes a PNG of the images with their predictions, and returns how many it shows."""


def file_predictor(loaded: LoadedModel) -> FilePredictor:
    """Returns the predictor of the model's task.

    Raises:
        ConfigError: the task has none, or the model cannot predict.
    """
    name = loaded.config.task.name
    maker = get_task(name).file_predictor
    if not maker:
        raise ConfigError(
            f"the task {name!r} has no predictions for files: TaskEntry.file_predictor is unset"
        )
    predictor: FilePredictor = pkgutil.resolve_name(maker)(loaded)
    return predictor


def check_one_device(options: PredictOptions) -> None:
    """Refuses a mesh for models that take images one by one.

    Raises:
        ConfigError: `options` has a mesh.
    """
    if options.mesh:
        raise ConfigError(
            f"--mesh of {options.mesh.size} devices is for classifiers: this model takes images "
            "one by one on one device; leave --mesh out"
        )


def output_names(files: Sequence[Path]) -> dict[Path, Path]:
    """Returns a path without suffix for the outputs of each file, relative to the output folder.

    Files of several folders keep their place below the folder that all are in. Files that differ in
    their suffix only keep it: a.jpg and a.png become a.jpg and a.png.
    """
    places = {file: file.absolute() for file in files}
    root = os.path.commonpath([place.parent for place in places.values()])
    counts = Counter(place.with_suffix("") for place in set(places.values()))
    names = {}
    for file, place in places.items():
        stem = place.with_suffix("")
        names[file] = (place if counts[stem] > 1 else stem).relative_to(root)
    return names
