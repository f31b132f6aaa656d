"""Bytes to batches: data sets, preprocessing on the host, and the loader. Nothing imports JAX."""

from vig_jax.data.dataset import Dataset, DatasetInfo, Example
from vig_jax.data.datasets.registry import open_dataset, register_dataset
from vig_jax.data.loader.bad_images import BadImages
from vig_jax.data.loader.batches import (
    Batch,
    BatchIterator,
    eval_batches,
    train_batches,
)
from vig_jax.data.loader.orders import steps_per_epoch
from vig_jax.data.preprocess.protocol import Preprocess

__all__ = [
    "BadImages",
    "Batch",
    "BatchIterator",
    "Dataset",
    "DatasetInfo",
    "Example",
    "Preprocess",
    "eval_batches",
    "open_dataset",
    "register_dataset",
    "steps_per_epoch",
    "train_batches",
]
