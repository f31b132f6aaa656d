"""Accuracy, loss and confusion matrix of a classifier."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vig_jax.config import DataConfig
from vig_jax.errors import DataSetError
from vig_jax.layers.pixels import normalise
from vig_jax.metrics.confusion import CONFUSION_FILE, Confusion
from vig_jax.metrics.states import Sums, SumsEvaluation
from vig_jax.sharding.per_image import per_device
from vig_jax.tasks.losses import cross_entropy
from vig_jax.tasks.protocol import Batch, BatchSpec, Variables

PRIMARY_METRIC = "top1"
_FIRST = 5  # guesses that `top5` looks at
_MOST_CONFUSABLE = 2000  # classes; the counts of all pairs take 16 MB


@dataclasses.dataclass(frozen=True)
class ClassificationEvaluation(SumsEvaluation):
    """Top-1 and top-5 accuracy; see `vig_jax.tasks.protocol.Evaluation`.

    Attributes:
        model: gives logits [B, num_classes].
        num_classes: width of the head.
        data: image size and normalisation.
        class_names: one per label; labels beyond them are shown as numbers.
    """

    model: nn.Module
    num_classes: int
    data: DataConfig
    class_names: tuple[str, ...] = ()
    primary_metric: str = PRIMARY_METRIC

    @property
    def batch_spec(self) -> BatchSpec:
        """Images uint8 [H, W, 3], labels int32, and weights float32."""
        height, width = self.data.eval_size or (self.data.image_size,) * 2
        return {
            "image": jax.ShapeDtypeStruct((height, width, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int32),
            "weight": jax.ShapeDtypeStruct((), np.float32),
        }

    def logits(self, variables: Variables, batch: Batch) -> Float[Array, "*b classes"]:
        """Returns the class logits of a batch."""
        images = normalise(batch["image"], self.data.mean, self.data.std)
        logits: Any = self.model.apply(variables, images)
        return logits

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """Returns weighted sums of the loss and of the hits among the first 1 and 5 guesses.

        For up to 2,000 classes also `confusion` [K, K], the count of each pair of true class (row)
        and first guess (column).
        """
        logits = self.logits(variables, batch).reshape(-1, self.num_classes)
        labels, weight = batch["label"].reshape(-1), batch["weight"].reshape(-1)
        _, guesses = per_device(lambda x: jax.lax.top_k(x, min(_FIRST, self.num_classes)))(logits)
        hits = (guesses == labels[:, None]).astype(weight.dtype)
        losses = cross_entropy(logits, labels)
        counts = {}
        if self.num_classes <= _MOST_CONFUSABLE:
            none = jnp.zeros((self.num_classes, self.num_classes))
            counts = {"confusion": none.at[labels, guesses[:, 0]].add(weight)}
        return counts | {
            "loss": jnp.sum(weight * losses),
            "top1": jnp.sum(weight * hits[:, 0]),
            "top5": jnp.sum(weight * hits.max(axis=1)),
            "weight": jnp.sum(weight),
        }

    def compute(self, state: Sums) -> dict[str, float]:
        """Returns `loss` in nats, and `top1` as a fraction.

        For more than five classes also `top5`, a fraction: for fewer it is always 1. For two
        classes also `f1`.

        F1 is that of the second class: 2 TP / (2 TP + FP + FN), or 0 if the class neither occurs
        nor is predicted.

        Raises:
            DataSetError: nothing was evaluated.
        """
        if not state or not state["weight"]:
            raise DataSetError("none of the images to evaluate can be decoded")
        names = ("loss", "top1", "top5") if self.num_classes > _FIRST else ("loss", "top1")
        values = {name: float(state[name]) / float(state["weight"]) for name in names}
        if self.num_classes == 2:
            (_, false_positives), (missed, found) = np.asarray(state["confusion"]).tolist()
            relevant = 2 * found + false_positives + missed
            values["f1"] = 2 * found / relevant if relevant else 0.0
        return values

    def save(self, state: Sums, folder: Path, description: str) -> None:
        """Writes the confusion matrix, or nothing if there are more than 2,000 classes."""
        if "confusion" in state:
            Confusion.from_counts(
                np.asarray(state["confusion"]), self.class_names, description
            ).save(folder)


def draw_results(folder: Path) -> list[Path]:
    """Draws the confusion matrix of a folder and writes its most frequent mistakes as CSV.

    Returns:
        The files written; none if there is no confusion matrix.

    Raises:
        ConfigError: the stored matrix is damaged.
    """
    if not (folder / CONFUSION_FILE).exists():
        return []
    confusion = Confusion.load(folder)
    figure, table = folder / "confusion.png", folder / "top_confusions.csv"
    confusion.draw(figure)
    confusion.write_top(table)
    return [figure, table]
