"""Data sets whose classes are matched to those of a trained model by name."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from vig_jax.data.dataset import ClassificationBase, ClassificationDataset, Dataset, Example
from vig_jax.data.datasets import imagenet
from vig_jax.errors import DataSetError
from vig_jax.text import preview_names


class RelabelledDataset(ClassificationBase):
    """A data set with the labels of another list of classes.

    Args:
        dataset: the images and their labels.
        class_names: the other list.
        positions: the place of each class of `dataset` in it.
    """

    def __init__(
        self, dataset: ClassificationDataset, class_names: Sequence[str], positions: Sequence[int]
    ):
        super().__init__(dataset.info.name, class_names)
        self._dataset = dataset
        self._positions = np.asarray(positions, np.int32)
        labels = dataset.labels()
        self._labels = np.where(labels < 0, -1, self._positions[labels])  # -1: unreadable

    def __getitem__(self, index: int) -> Example:
        example = self._dataset[index]
        return {**example, "label": int(self._positions[example["label"]])}

    def name_of(self, index: int) -> str:
        """Returns the image's name in the data set."""
        return self._dataset.name_of(index)

    def known_sizes(self) -> Int32[np.ndarray, "n 2"] | None:
        """Returns the sizes that the data set knows."""
        dataset = self._dataset
        return dataset.known_sizes() if isinstance(dataset, ClassificationBase) else None

    def digest(self) -> str:
        """Hashes the data set's fingerprint and the new labels."""
        text = f"{self._dataset.info.fingerprint} {self._positions.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()


def match_classes(
    dataset: ClassificationDataset,
    class_names: Sequence[str],
    *,
    num_classes: int,
    class_map: Mapping[str, str] | None = None,
) -> Dataset:
    """Returns a data set with the labels that a trained model has for its classes.

    Classes are matched by name. The data set may have fewer of them, in any order. The names of the
    ImageNet-1k classes and their WordNet identifiers are interchangeable.

    Args:
        dataset: the data set to evaluate or to train on.
        class_names: of the model, by label; empty if its weights name no classes.
        num_classes: outputs of the model.
        class_map: names of the data set to names of the model, where they differ.

    Raises:
        DataSetError: lists the classes that the model does not have.
    """
    found = [(class_map or {}).get(name, name) for name in dataset.class_names]
    if not class_names:
        if len(found) != num_classes:
            raise DataSetError(
                f"the data set has {len(found)} classes, the model {num_classes}, and its weights "
                "do not name them: evaluate on a data set with all classes, sorted as in training"
            )
        return dataset
    positions = {name: label for label, name in enumerate(class_names)}
    aliases = dict(zip(imagenet.class_ids(), imagenet.class_names(), strict=True))
    aliases |= {name: identifier for identifier, name in aliases.items()}
    matched = [positions.get(name, positions.get(aliases.get(name, ""))) for name in found]
    if missing := [name for name, label in zip(found, matched, strict=True) if label is None]:
        raise DataSetError(
            f"the data set has {len(missing)} classes that the model does not know: "
            f"{preview_names(missing)}; the model's {len(class_names)} classes are "
            f"{preview_names(class_names)}. Rename the classes of the data set, or map their names"
            " with --class-map FILE"
        )
    labels = [label for label in matched if label is not None]
    twice = [name for name, label in zip(found, labels, strict=True) if labels.count(label) > 1]
    if twice and class_map is None:
        raise DataSetError(
            f"several classes of the data set have the same name for the model: "
            f"{preview_names(twice)}. Rename them"
        )
    if labels == list(range(len(class_names))):
        return dataset
    return RelabelledDataset(dataset, class_names, labels)
