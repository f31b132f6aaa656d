"""Batches and images with the settings of a `DataConfig`."""

import numpy as np

from vig_jax.config import DataConfig
from vig_jax.data import BatchIterator, Dataset
from vig_jax.data.loader import batches
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.geometry import Pixels, draw_view, image_size


def train_batches(dataset: Dataset, data: DataConfig, **settings) -> BatchIterator:
    preprocess = ClassificationPreprocess(data, train=True)
    settings = {"workers": data.workers, "prefetch": data.prefetch} | settings
    return batches.train_batches(dataset, preprocess, **settings)


def eval_batches(dataset: Dataset, data: DataConfig, **settings) -> BatchIterator:
    preprocess = ClassificationPreprocess(data, train=False)
    settings = {"workers": data.workers, "prefetch": data.prefetch} | settings
    return batches.eval_batches(dataset, preprocess, **settings)


def train_image(image: Pixels, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    return draw_view(image_size(image), data, rng).image(image)


def eval_image(image: Pixels, data: DataConfig) -> np.ndarray:
    return draw_view(image_size(image), data, None).image(image)
