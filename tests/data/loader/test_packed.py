"""Batches whose rows hold several images."""

import itertools

import numpy as np
import pytest

from tests.data.photographs import encoded, photo
from vig_jax.data import BadImages, eval_batches, open_dataset, train_batches
from vig_jax.data.datasets.relabel import RelabelledDataset
from vig_jax.data.loader.packed import eval_rows
from vig_jax.data.preprocess.native import NativePreprocess, RowShape
from vig_jax.errors import ConfigError

SHAPE = RowShape(patch_size=8, tokens=60, images=4, image_tokens=25)  # not room for 4 of 25
BATCH = 8


@pytest.fixture
def data(make_data, folder):
    """Photographs of 36 to 46 pixels a side, and one that is small."""
    (folder / "val" / "cat" / "000.jpg").write_bytes(encoded(photo(16, 24)))
    return make_data(source="image_folder", path=str(folder), max_bad_images=1)


def train(data, steps, start=0, processes=1, workers=0):
    return joined(
        [
            train_batches(
                open_dataset(data, "train"),
                NativePreprocess(data, SHAPE, train=True),
                batch_size=BATCH,
                seed=0,
                start_step=start,
                process_index=process,
                process_count=processes,
                workers=workers,
            )
            for process in range(processes)
        ],
        steps,
    )


def evaluate(data, source=None, processes=1, shape=SHAPE, workers=0):
    return joined(
        [
            eval_batches(
                source or open_dataset(data, "eval"),
                NativePreprocess(data, shape, train=False),
                batch_size=2 * shape.images,
                process_index=process,
                process_count=processes,
                workers=workers,
            )
            for process in range(processes)
        ]
    )


def joined(iterators, steps=None):
    """Global batches: the processes' rows put together."""
    parts = []
    for iterator in iterators:
        with iterator as batches:
            parts.append(list(itertools.islice(batches, steps)))
    assert len({len(part) for part in parts}) == 1
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], name)


def test_training_fills_every_row(data):
    batches = train(data, 4)
    kinds = {name: (array.dtype, array.shape) for name, array in batches[0].items()}
    assert kinds == {
        "patches": (np.uint8, (2, 60, 8, 8, 3)),
        "sizes": (np.int32, (2, 4, 2)),
        "label": (np.int32, (2, 4)),
        "index": (np.int64, (2, 4)),
        "bad": (np.int64, (2, 4)),
    }
    assert sorted(np.concatenate([b["index"].ravel() for b in batches])) == list(range(32))
    source, sizes = open_dataset(data, "train"), np.stack([b["sizes"] for b in batches])
    assert sizes.min() > 0
    assert sizes.prod(axis=-1).sum(axis=-1).max() <= 60
    for batch in batches:
        labels = [source[index]["label"] for index in batch["index"].ravel().tolist()]
        assert batch["label"].ravel().tolist() == labels


def test_a_batch_depends_on_its_number_alone(data):
    """Whatever was read before, and whoever reads it."""
    batches = train(data, 6)
    assert_same(train(data, 2, start=4), batches[4:])
    assert_same(train(data, 6, processes=2), batches)
    assert not np.array_equal(batches[0]["patches"], batches[4]["patches"])


@pytest.mark.slow
def test_workers_make_the_same_batches(data):
    assert_same(train(data, 3, workers=2), train(data, 3))
    assert_same(evaluate(data, workers=2), evaluate(data))


def test_evaluation_has_every_image_once_in_order(data):
    batches = evaluate(data)
    assert_same(evaluate(data, processes=2), batches)
    source = open_dataset(data, "eval")
    present = [batch["weight"] == 1 for batch in batches]
    found = np.concatenate([b["index"][here] for b, here in zip(batches, present, strict=True)])
    assert found.tolist() == list(range(len(source)))
    for batch, here in zip(batches, present, strict=True):
        np.testing.assert_array_equal(batch["sizes"].prod(axis=-1) > 0, here)
        np.testing.assert_array_equal(batch["index"] >= 0, here)
        labels = [source[index]["label"] for index in batch["index"][here].tolist()]
        assert batch["label"][here].tolist() == labels


def test_known_sizes_decide_how_many_images_a_row_has(data):
    """Three of 6, 25 and 25 tokens fit into 60, and two whose sizes are not known."""
    source = open_dataset(data, "eval")
    preprocess = NativePreprocess(data, SHAPE, train=False)
    lengths = preprocess.lengths(source.known_sizes()).tolist()
    rows = eval_rows(source, preprocess)
    assert rows[0] == (0, 3)
    assert [end for _, end in rows[:-1]] == [first for first, _ in rows[1:]]
    assert rows[-1][1] == len(source)
    assert all(sum(lengths[first:end]) <= 60 for first, end in rows)
    assert all(sum(lengths[first : end + 1]) > 60 for first, end in rows[:-1])
    relabelled = RelabelledDataset(source, ("yak", "dog", "cat"), (2, 1, 0))
    assert eval_rows(relabelled, preprocess) == rows
    source.known_sizes = lambda: None
    assert eval_rows(source, preprocess) == ((0, 2), (2, 4), (4, 6), (6, 7))
    roomy = NativePreprocess(data, SHAPE._replace(tokens=100), train=False)
    assert eval_rows(source, roomy) == ((0, 4), (4, 7))


def test_sizes_of_a_part_of_a_data_set(make_data, folder):
    data = make_data(source="image_folder", path=str(folder / "train"), split="stratified")
    sizes = [open_dataset(data, part).known_sizes() for part in ("train", "eval")]
    assert sum(map(len, sizes)) == 32
    source = open_dataset(data, "eval")
    preprocess = NativePreprocess(data, RowShape(1, 10**4, 1, 10**4), train=False)
    height, width, _ = preprocess(source[1], None)["image"].shape
    assert sizes[1][1].tolist() == [width, height]
    embedded = open_dataset(make_data(), "eval").known_sizes()
    assert embedded.tolist() == [[28, 28]] * len(embedded)


def test_undecodable_images(data, folder):
    (folder / "val" / "cat" / "001.PNG").write_bytes(b"nothing")
    (folder / "train" / "cat" / "001.PNG").write_bytes(b"nothing")
    batches = evaluate(data)
    assert sum(batch["weight"].sum() for batch in batches) == 6
    first = batches[0]
    assert first["index"][0].tolist() == [0, 2, 3, 1]  # the others come first
    assert first["weight"][0].tolist() == [1, 1, 1, 0]
    assert first["bad"][0].tolist() == [-1, -1, -1, 1]
    assert first["sizes"][0, 3].tolist() == [0, 0]
    bad = BadImages(open_dataset(data, "eval"), NativePreprocess(data, SHAPE, train=False), 1)
    for batch in batches:
        bad.update(batch["bad"])
    assert len(bad) == 1
    training = train(data, 4)
    indices = np.concatenate([b["index"].ravel() for b in training])
    replaced = np.concatenate([b["bad"].ravel() for b in training])
    assert indices[replaced == 1].tolist() == [2]


def test_batches_that_cannot_be_split_into_rows(data):
    with pytest.raises(ConfigError, match=r"batch_size=8 .* 4 processes with rows of 4 images"):
        train(data, 1, processes=4)
