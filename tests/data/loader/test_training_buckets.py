"""Training batches of images of different sizes."""

import dataclasses
import itertools
import pickle
import sys

import numpy as np
import pytest

from vig_jax.data import DatasetInfo, steps_per_epoch, train_batches
from vig_jax.data.loader.orders import make_order
from vig_jax.errors import DataSetError, UndecodableImageError

LENGTH, BATCH = 61, 4
SIZES = np.random.default_rng(0).integers(1, 9, (LENGTH, 2)).astype(np.int32)
SHAPES = ((4, 4), (4, 8), (8, 4), (8, 8))
WIDE_AND_HIGH = ((4, 4), (4, 16), (8, 16), (16, 4), (16, 8))


class Rectangles:
    """Images whose pixels are their number plus one; those in `damaged` cannot be read."""

    info = DatasetInfo("rectangles", "rectangles 1", {})

    def __init__(self, length=LENGTH, damaged=()):
        self.length, self.damaged = length, damaged

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.damaged:
            raise UndecodableImageError("damaged")
        width, height = SIZES[index]
        return {"image": np.full((height, width), index + 1, np.uint8)}

    def name_of(self, index):
        return str(index)

    def sizes(self):
        return SIZES[: self.length]


class Unsized(Rectangles):
    sizes = None


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Doubles the width of half of the images and pads to a bucket."""

    buckets: tuple[tuple[int, int], ...] = SHAPES
    random: bool = True
    draws = 5

    def drawn_buckets(self, sizes, draws):
        shapes = np.array(self.buckets)
        widths = np.minimum(sizes[:, :1] * np.where(draws[:, 4:] < 0.5 * self.random, 2, 1), 8)
        fits = (sizes[:, 1:] <= shapes[:, 0]) & (widths <= shapes[:, 1])
        return np.where(fits, shapes.prod(axis=1), 1000).argmin(axis=1)

    def spec_of(self, bucket):
        return {
            "image": (bucket, np.dtype(np.uint8)),
            "draw": ((), np.dtype(np.float64)),
        }

    def __call__(self, example, rng):
        draws = rng.random(self.draws)
        image = example["image"]
        height, width = image.shape
        (number,) = self.drawn_buckets(np.array([[width, height]]), draws[None])
        result = np.zeros(self.buckets[number], np.uint8)
        if draws[4] < 0.5 * self.random:
            image = np.repeat(image, 2, axis=1)[:, :8]
        result[: image.shape[0], : image.shape[1]] = image
        return {"image": result, "draw": draws[4]}


def take(steps, start=0, processes=1, seed=0, workers=0, source=None, preprocess=None):
    parts = []
    for process in range(processes):
        with train_batches(
            source or Rectangles(),
            preprocess or Doubling(),
            batch_size=BATCH,
            seed=seed,
            start_step=start,
            process_index=process,
            process_count=processes,
            workers=workers,
        ) as batches:
            parts.append(list(itertools.islice(batches, steps)))
    return [
        {name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]}
        for k in range(steps)
    ]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], name)


def test_batches_have_one_shape_and_an_epoch_repeats_nothing():
    steps = steps_per_epoch(Rectangles(), BATCH, Doubling())
    assert steps == LENGTH // BATCH  # the largest bucket holds all others
    batches = take(2 * steps)
    epochs = batches[:steps], batches[steps:]
    for epoch in epochs:
        indices = np.concatenate([batch["index"] for batch in epoch])
        assert len(set(indices.tolist())) == steps * BATCH
        shapes = [batch["image"].shape[1:] for batch in epoch]
        assert set(shapes) == set(SHAPES)
        assert shapes != sorted(shapes)  # the buckets are mixed
    for batch in batches:
        for image, index, draw in zip(batch["image"], batch["index"], batch["draw"], strict=True):
            width, height = SIZES[index]
            width = min(8, 2 * width) if draw < 0.5 else width
            assert (image[:height, :width] == index + 1).all()
            assert image.sum() == (index + 1) * width * height
    first, second = (
        {index: draw for b in epoch for index, draw in zip(b["index"], b["draw"], strict=True)}
        for epoch in epochs
    )
    assert all(first[index] != second[index] for index in first.keys() & second.keys())


def test_only_the_leftovers_are_in_a_larger_bucket():
    preprocess = Doubling(random=False)
    own = preprocess.drawn_buckets(SIZES, np.ones((LENGTH, 5)))
    moved = 0
    for batch in take(LENGTH // BATCH, preprocess=preprocess):
        shape = batch["image"].shape[1:]
        moved += sum(SHAPES[own[index]] != shape for index in batch["index"])
    assert 0 < moved < BATCH * len(SHAPES)


def test_two_largest_buckets_leave_out_less_than_a_batch_each():
    preprocess = Doubling(WIDE_AND_HIGH)
    for length in range(2 * BATCH - 1, LENGTH):
        source = Rectangles(length)
        steps = steps_per_epoch(source, BATCH, preprocess)
        assert steps >= length // BATCH - 1
        order = make_order(source, preprocess, BATCH, seed=length)
        for epoch in range(3):
            assert order.plan(epoch).batches.shape == (steps, BATCH)
    with pytest.raises(DataSetError, match=r"6 images.*of 4 of images in 2 kinds.*at most 3"):
        steps_per_epoch(Rectangles(6), BATCH, preprocess)


def test_resuming_is_starting_at_a_step_for_any_number_of_processes():
    batches = take(34)
    for start in (1, 14, 15, 31):
        assert_same(take(3, start), batches[start : start + 3])
    assert_same(take(34, processes=4), batches)
    other = take(3, seed=1)
    assert not np.array_equal(other[0]["index"], batches[0]["index"])


def test_workers_make_the_same_batches():
    assert_same(take(4, start=13, workers=1), take(4, start=13))


def test_the_order_is_pinned():
    # A change of this breaks the resumption of runs in progress.
    batch = take(1, start=20)[0]
    assert batch["index"].tolist() == [52, 47, 8, 57]
    assert batch["image"].shape[1:] == (8, 8)


def test_a_bad_image_is_replaced_by_one_that_fits_into_the_batch():
    damaged = tuple(range(20, 40))
    source = Rectangles(damaged=damaged)
    batches = take(15, source=source)
    assert {b for batch in batches for b in batch["bad"]} >= {-1, 20, 30}
    for batch, whole in zip(batches, take(15), strict=True):
        assert batch["image"].shape == whole["image"].shape
        for index, bad, drawn in zip(batch["index"], batch["bad"], whole["index"], strict=True):
            assert bad == (drawn if drawn in damaged else -1)
            assert index not in damaged
            assert bad != -1 or index == drawn
    assert_same(take(15, source=source, processes=2), batches)
    with pytest.raises(DataSetError, match="images in a row cannot be decoded"):
        take(1, source=Rectangles(damaged=range(LENGTH)))


def test_a_data_set_without_sizes_is_refused():
    with pytest.raises(DataSetError, match="rectangles does not know the sizes of its images"):
        train_batches(Unsized(), Doubling(), batch_size=BATCH, seed=0)


def test_bytes_are_those_of_the_largest_bucket():
    with train_batches(Rectangles(), Doubling(), batch_size=BATCH, seed=0) as batches:
        assert batches.total_bytes == sys.maxsize * BATCH * (64 + 8 + 20)
    order = pickle.loads(pickle.dumps(make_order(Rectangles(), Doubling(), BATCH, 0)))
    assert order.batch(3)[0]["image"][0] in SHAPES
