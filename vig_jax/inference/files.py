"""From image files to class names."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vig_jax.config import DataConfig
from vig_jax.data.datasets.fashion_mnist import folder_name
from vig_jax.data.formats.image_folder import is_image
from vig_jax.data.preprocess.decode import decode
from vig_jax.data.preprocess.geometry import draw_view
from vig_jax.errors import UndecodableImageError
from vig_jax.inference.predictor import Predictor, predictor
from vig_jax.models.from_config import model_from_config
from vig_jax.train.checkpoint import Restored

MAX_DRAWN = 40


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model says of one file.

    Attributes:
        path: the file.
        top: class names with probabilities, likeliest first; empty if there is an error.
        error: why the file could not be read, or None.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A record of plain values."""
        if self.error:
            return {"image": str(self.path), "error": self.error}
        top = [{"class": name, "probability": round(p, 6)} for name, p in self.top]
        return {"image": str(self.path), "top": top}


class Classifier:
    """A trained run, ready to name what images show."""

    def __init__(
        self, model: Any, variables: Any, data: DataConfig, class_names: Sequence[str]
    ) -> None:
        self.data = data
        self.class_names = tuple(class_names)
        self._model = model
        self._variables = variables
        self._predictors: dict[int, Predictor] = {}

    @classmethod
    def of(cls, restored: Restored) -> "Classifier":
        """From what `load_for_inference` or `restore_weights` gives."""
        model = model_from_config(restored.config.model)
        class_names = restored.metadata.get("class_names", ())
        return cls(model, restored.variables, restored.config.data, class_names)

    def predict(
        self, files: Sequence[Path], *, top: int = 5, batch_size: int = 64
    ) -> Iterator[Answer]:
        """Answers in the order of `files`; one that cannot be read gets an `error`."""
        batch_size = max(1, min(batch_size, len(files)))
        run = self._predictor(batch_size)
        for start in range(0, len(files), batch_size):
            yield from self._predict_batch(run, files[start : start + batch_size], top)

    def _predictor(self, batch_size: int) -> Predictor:
        """Compiled at the first need of the batch size."""
        if batch_size not in self._predictors:
            data = self.data
            self._predictors[batch_size] = predictor(
                self._model,
                self._variables,
                batch_size,
                data.image_size,
                mean=data.mean,
                std=data.std,
            )
        return self._predictors[batch_size]

    def _predict_batch(self, run: Predictor, files: Sequence[Path], top: int) -> Iterator[Answer]:
        images = np.zeros((len(files), *run.image_size, 3), np.uint8)
        errors: dict[int, str] = {}
        for row, file in enumerate(files):
            try:
                image = decode(file.read_bytes())
                images[row] = draw_view(image.size, self.data, None).image(image)
            except (UndecodableImageError, OSError) as error:
                errors[row] = str(error)
        probabilities = np.asarray(jax.nn.softmax(run(images)))
        for row, file in enumerate(files):
            if row in errors:
                yield Answer(file, (), errors[row])
                continue
            order = np.argsort(-probabilities[row], kind="stable")[:top].tolist()
            names = tuple((self._name(i), float(probabilities[row, i])) for i in order)
            yield Answer(file, names)

    def _name(self, index: int) -> str:
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and every image file below the folders named, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or there is no image file at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and is_image(p.name))
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"no image file or folder at {path}")
    if not files:
        raise FileNotFoundError(f"no image files in {', '.join(map(str, paths))}")
    return files


def draw(answers: Sequence[Answer], path: Path, class_names: Sequence[str]) -> int:
    """Writes a PNG of up to 40 images with their first answers; returns how many it shows.

    The true label is the name of an image's folder, if that is a class: a right answer is
    green, a wrong one red with the truth beneath.
    """
    from matplotlib.figure import Figure

    by_folder = {folder_name(name): name for name in class_names}
    shown = [answer for answer in answers if not answer.error][:MAX_DRAWN]
    columns = min(8, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for i in range(rows * columns):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_axis_off()
        if i >= len(shown):
            continue
        answer = shown[i]
        axes.imshow(np.asarray(decode(answer.path.read_bytes())))
        (guess, probability), folder = answer.top[0], answer.path.parent.name
        color, text = "black", f"{guess} {probability:.0%}"
        if truth := by_folder.get(folder):
            color = "tab:green" if guess == truth else "tab:red"
            text += "" if guess == truth else f"\n(true: {truth})"
        axes.set_title(text, fontsize=8, color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return len(shown)
