"""Times the stages of the host per image, and the loader."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from vig_jax.config import DataConfig
from vig_jax.config.tasks import DetectionConfig, SegmentationConfig
from vig_jax.data.dataset import Dataset
from vig_jax.data.inspection import spread
from vig_jax.data.loader.batches import train_batches
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.decode import load
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.data.preprocess.detection_views import DRAWS, DetectionViews
from vig_jax.data.preprocess.geometry import draw_view, image_size
from vig_jax.data.preprocess.masks import decode_mask, label_lookup, zero_is_no_class
from vig_jax.data.preprocess.protocol import DrawnBuckets, Preprocess
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.data.preprocess.segmentation_views import TrainingViews

_ROUNDS = 8
_BATCH_BYTES = 2**24
# mmsegmentation's training images for ADE20K.
_ADE20K = SegmentationConfig(resize_ratio=(0.5, 2.0), crop_max_share=0.75)

Stages = Mapping[str, Callable[[int], Any]]


def training_preprocess(dataset: Dataset, data: DataConfig) -> Preprocess | DrawnBuckets:
    """Returns the preprocess of training for a data set of classes, of masks, or of boxes.

    Args:
        dataset: the training split. What it has is read from its first example.
        data: crop and size. Masks get mmsegmentation's views for ADE20K, with crops of this size.
            Boxes get mmdetection's views for COCO, of 1333 x 800 pixels.
    """
    first = dataset[0]
    if "boxes" in first and "mask" not in first:
        masks = dataset.info.metadata["has_masks"]
        return DetectionPreprocess(data, DetectionConfig(masks=masks), train=True)
    if "mask" not in first:
        return ClassificationPreprocess(data, train=True)
    metadata = dataset.info.metadata
    lookup = label_lookup(metadata, zero_is_no_class(metadata))
    return SegmentationPreprocess(data, _ADE20K, lookup, train=True)


def host_stages(dataset: Dataset, data: DataConfig, images: int) -> dict[str, dict[str, float]]:
    """Times the stages of the training path in this process, interleaved.

    Args:
        dataset: the training split, of classes, masks or boxes.
        data: crop and size.
        images: number of images, spread evenly over the data set, shuffled.

    Returns:
        For "read", the stages of `training_preprocess` and "all": CPU milliseconds per image, in
        the best round ("best") and in the median round ("median").
    """
    preprocess = training_preprocess(dataset, data)  # compiles the kernel
    indices = np.random.default_rng(0).permutation(spread(len(dataset), images)).tolist()
    examples = [dataset[index] for index in indices]
    if isinstance(preprocess, SegmentationPreprocess):
        parts = _mask_stages(examples, preprocess)
    elif isinstance(preprocess, DetectionPreprocess):
        parts = _box_stages(examples, preprocess)
    else:
        parts = _class_stages(examples, data)
    stages: Stages = {
        "read": lambda i: dataset[indices[i]],
        **parts,
        "all": lambda i: preprocess(dataset[indices[i]], np.random.default_rng(i)),
    }
    return _timed(stages, len(indices))


def _class_stages(examples: list[Any], data: DataConfig) -> Stages:
    files = [example["image"] for example in examples]
    decoded = [load(file, data) for file in files]

    def crop(i: int) -> Any:
        view = draw_view(image_size(decoded[i]), data, np.random.default_rng(i))
        return view.image(decoded[i])

    return {"decode": lambda i: load(files[i], data), "crop and resize": crop}


def _mask_stages(examples: list[Any], preprocess: SegmentationPreprocess) -> Stages:
    data, lookup = preprocess.data, preprocess.lookup
    fast = data.resize != "pillow"
    views = TrainingViews.of(data, preprocess.task)
    images = [load(example["image"], data) for example in examples]
    masks = [decode_mask(example["mask"]) for example in examples]

    def crop(i: int) -> Any:
        draws = views.draw(image_size(images[i]), np.random.default_rng(i))
        return views.view(masks[i], draws, lookup, fast=fast)[0]

    chosen = [crop(i) for i in range(len(examples))]
    return {
        "decode the image": lambda i: load(examples[i]["image"], data),
        "decode the mask": lambda i: decode_mask(examples[i]["mask"], fast=fast),
        "choose the crop, and its mask": crop,
        "resize the crop": lambda i: chosen[i].image(images[i]),
    }


def _box_stages(examples: list[Any], preprocess: DetectionPreprocess) -> Stages:
    data = preprocess.data
    images = [load(example["image"], data) for example in examples]
    sizes = np.array([image_size(image) for image in images])
    views = DetectionViews.of(data, preprocess.task)
    plans = views.training(sizes, np.random.default_rng(0).random((len(sizes), DRAWS)))
    return {
        "decode": lambda i: load(examples[i]["image"], data),
        "resize and flip": lambda i: plans.view(i).image(images[i]),
        "boxes and masks": lambda i: preprocess.objects(examples[i], plans.view(i)),
    }


def _timed(stages: Stages, count: int) -> dict[str, dict[str, float]]:
    # As in a worker, where batches are freed: from then on, glibc keeps freed memory of that size
    # for the next image. It would return the memory of single images to the system each time.
    np.ones(_BATCH_BYTES, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in tqdm(range(_ROUNDS), "host", unit="round", disable=None, leave=False):
        for name, stage in stages.items():
            begun = time.process_time()
            for number in range(count):
                stage(number)
            times[name].append((time.process_time() - begun) / count * 1e3)
    return {
        name: {"best": min(some), "median": float(np.median(some))} for name, some in times.items()
    }


def loader_speed(dataset: Dataset, data: DataConfig, batch_size: int, seconds: float) -> float:
    """Returns images per second of wall time through the whole loader, after its first batches.

    Args:
        dataset: the training split, of classes, masks or boxes.
        data: workers, prefetch, crop, size.
        batch_size: images.
        seconds: minimum duration.
    """
    with train_batches(
        dataset,
        training_preprocess(dataset, data),
        batch_size=batch_size,
        seed=0,
        workers=data.workers,
        prefetch=max(1, data.prefetch),
    ) as batches:
        for _ in range(2 * max(1, data.workers)):  # batches that were ready before the clock starts
            next(batches)
        begun, count = time.monotonic(), 0
        with tqdm(desc="loader", unit="img", disable=None, leave=False) as bar:
            while (elapsed := time.monotonic() - begun) < seconds:
                next(batches)
                count += batch_size
                bar.update(batch_size)
    return count / elapsed
