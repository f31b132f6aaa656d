"""Evaluation batches of images of different sizes."""

import dataclasses

import numpy as np
import pytest

from vig_jax.data import DatasetInfo, eval_batches
from vig_jax.errors import DataSetError, UndecodableImageError

SIZES = np.array([(3, 5), (8, 8), (4, 4), (2, 5), (7, 7), (4, 2), (9, 9)], np.int32)
DAMAGED = 4


class Rectangles:
    """Images whose pixels are their number; the one called DAMAGED cannot be read."""

    info = DatasetInfo("rectangles", "rectangles 1", {})

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        width, height = SIZES[index]
        return {"image": np.full((height, width), index, np.uint8)}

    def name_of(self, index):
        return str(index)

    def sizes(self):
        return SIZES


class Unsized(Rectangles):
    sizes = None


@dataclasses.dataclass(frozen=True)
class ToMultipleOfFive:
    """Pads an image with 255 to a square whose side is a multiple of 5."""

    def bucket(self, width, height):
        return -(-max(width, height) // 5) * 5

    def spec_of(self, bucket):
        return {"image": ((bucket, bucket), np.dtype(np.uint8))}

    def __call__(self, example, rng):
        image = example["image"]
        if (image == DAMAGED).any():
            raise UndecodableImageError("damaged")
        side = self.bucket(*image.shape[::-1])
        padding = [(0, side - length) for length in image.shape]
        return {"image": np.pad(image, padding, constant_values=255)}


def batches(processes=1, workers=0):
    found = []
    for process in range(processes):
        with eval_batches(
            Rectangles(),
            ToMultipleOfFive(),
            batch_size=2,
            process_index=process,
            process_count=processes,
            workers=workers,
        ) as made:
            assert made.total_bytes == 4 * (2 // processes) * (100 + 20)
            found.append(list(made))
    assert len({len(part) for part in found}) == 1
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*found, strict=True)
    ]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (1, 1)])
def test_a_batch_has_images_of_one_bucket_and_each_image_comes_once(processes, workers):
    expected = [(5, [0, 2]), (5, [3, 5]), (10, [1, DAMAGED]), (10, [6, -1])]
    found = batches(processes, workers)
    assert [(b["image"].shape[1], b["index"].tolist()) for b in found] == expected
    for batch in found:
        for image, index, weight, bad in zip(
            batch["image"], batch["index"], batch["weight"], batch["bad"], strict=True
        ):
            assert weight == (index not in (DAMAGED, -1))
            assert bad == (DAMAGED if index == DAMAGED else -1)
            if weight:
                assert (image == index).sum() == SIZES[index].prod()
                assert ((image == index) | (image == 255)).all()


def test_a_data_set_without_sizes_is_refused():
    with pytest.raises(DataSetError, match="rectangles does not know the sizes of its images"):
        eval_batches(Unsized(), ToMultipleOfFive(), batch_size=2)
