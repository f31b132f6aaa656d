import dataclasses
import itertools
import multiprocessing

import numpy as np
import pytest

from tests.data.loading import eval_batches, eval_image, train_batches
from tests.data.photographs import encoded, photo
from vig_jax.data import DatasetInfo, loader, open_dataset, steps_per_epoch
from vig_jax.data.preprocess.decode import decode
from vig_jax.errors import DataSetError

BATCH = 8


@pytest.fixture
def data(make_data, folder):
    """32 training images, so 4 steps of 8; the settings crop, flip and resize."""
    return make_data(source="image_folder", path=str(folder), image_size=16)


def take(source, data, steps, start=0, batch_size=BATCH, seed=0, processes=1):
    """Global batches: the processes' rows put together."""
    parts = []
    for process in range(processes):
        with train_batches(
            source,
            data,
            batch_size=batch_size,
            seed=seed,
            start_step=start,
            process_index=process,
            process_count=processes,
        ) as batches:
            parts.append(list(itertools.islice(batches, steps)))
    return [
        {name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]}
        for k in range(steps)
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], name)


def test_batch_has_its_types_and_belongs_to_its_indices(data):
    source = open_dataset(data, "train")
    plain = dataclasses.replace(data, crop="none", hflip=0.0)
    for batch in take(source, plain, 3):
        kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
        assert kinds == {
            "image": (np.uint8, (8, 16, 16, 3)),
            "label": (np.int32, (8,)),
            "index": (np.int64, (8,)),
            "bad": (np.int64, (8,)),
        }
        assert (batch["bad"] == -1).all()
        for image, label, index in zip(
            batch["image"], batch["label"], batch["index"].tolist(), strict=True
        ):
            example = source[index]
            assert label == example["label"]
            resized = decode(example["image"]).resize((16, 16), 3)
            np.testing.assert_array_equal(image, np.asarray(resized))


@pytest.mark.parametrize("batch_size", [8, 5])
def test_an_epoch_repeats_nothing_and_the_next_differs(data, batch_size):
    source = open_dataset(data, "train")
    steps = steps_per_epoch(source, batch_size)
    assert steps == 32 // batch_size
    batches = take(source, data, 3 * steps, batch_size=batch_size)
    epochs = [
        np.concatenate([b["index"] for b in batches[e * steps : (e + 1) * steps]]) for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == steps * batch_size
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_order_and_augmentation_differ_between_epochs_and_seeds(data):
    source = open_dataset(data, "train")
    drawn, orders = {}, set()
    for seed in (0, 1):
        batches = take(source, data, 8, seed=seed)
        for epoch in (batches[:4], batches[4:]):
            orders.add(np.concatenate([batch["index"] for batch in epoch]).tobytes())
        for step, batch in enumerate(batches):
            for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
                drawn[seed, step // 4, index] = image.tobytes()
    assert len(orders) == 4
    assert len(drawn) == 4 * 32
    assert len(set(drawn.values())) == 4 * 32


def test_the_order_is_pinned(data):
    # A change of this breaks the resumption of runs in progress.
    batch = take(open_dataset(data, "train"), data, 1, start=5)[0]
    assert batch["index"].tolist() == [29, 17, 30, 21, 13, 18, 28, 22]


def test_processes_share_the_same_global_batches(data):
    source = open_dataset(data, "train")
    alone = take(source, data, 5)
    for processes in (2, 4):
        assert_same(take(source, data, 5, processes=processes), alone)


def test_resuming_is_starting_at_a_step(data):
    source = open_dataset(data, "train")
    batches = take(source, data, 8)
    for start in (1, 4, 6):  # the second is the first of an epoch
        assert_same(take(source, data, 2, start=start), batches[start : start + 2])


def evaluate(data, batch_size, processes=1):
    source = open_dataset(data, "eval")
    parts = []
    for process in range(processes):
        with eval_batches(
            source,
            data,
            batch_size=batch_size,
            process_index=process,
            process_count=processes,
        ) as batches:
            parts.append(list(batches))
    assert len({len(part) for part in parts}) == 1
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def test_evaluation_is_one_pass_in_order(data):
    batches = evaluate(data, 4)
    source = open_dataset(data, "eval")
    assert [b["weight"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    assert batches[0]["weight"].dtype == np.float32
    for batch in batches:
        assert (batch["bad"] == -1).all()
        assert batch["image"].shape == (4, 16, 16, 3)
        for row in np.flatnonzero(batch["weight"]):
            example = source[int(batch["index"][row])]
            assert batch["label"][row] == example["label"]
            expected = eval_image(decode(example["image"]), data)
            np.testing.assert_array_equal(batch["image"][row], expected)


@pytest.mark.parametrize(("batch_size", "processes"), [(4, 2), (16, 4)])
def test_evaluation_is_shared_evenly(data, batch_size, processes):
    assert_same(evaluate(data, batch_size, processes), evaluate(data, batch_size))


@pytest.fixture
def spoilt(data, folder):
    """Files 3, 4 and 31 (the last) of the training split and 2 of the other are not images."""
    source = open_dataset(data, "train")
    for index, contents in ((3, b""), (4, b"no image"), (31, encoded(photo(9, 9))[:200])):
        (folder / source.name_of(index)).write_bytes(contents)
    (folder / open_dataset(data, "eval").name_of(2)).write_bytes(b"")
    return data


def test_training_replaces_a_bad_image_by_the_next_good_one(spoilt):
    source = open_dataset(spoilt, "train")
    batches = take(source, spoilt, 4)
    rows = {
        name: np.concatenate([batch[name] for batch in batches])
        for name in ("index", "bad", "label")
    }
    replaced = {
        bad: index
        for bad, index in zip(rows["bad"].tolist(), rows["index"].tolist(), strict=True)
        if bad >= 0
    }
    assert replaced == {3: 5, 4: 5, 31: 0}
    assert (rows["index"] == 5).sum() == 3
    for index, label in zip(rows["index"].tolist(), rows["label"].tolist(), strict=True):
        assert label == source[index]["label"]
    assert_same(take(source, spoilt, 4, processes=2), batches)


def test_a_vanished_file_is_a_bad_image(data, folder):
    source = open_dataset(data, "train")
    (folder / source.name_of(7)).unlink()
    bad = np.concatenate([batch["bad"] for batch in take(source, data, 4)])
    assert bad[bad >= 0].tolist() == [7]


def test_evaluation_gives_bad_images_no_weight(spoilt):
    first, second = evaluate(spoilt, 4)
    assert first["weight"].tolist() == [1, 1, 0, 1]
    assert first["bad"].tolist() == [-1, -1, 2, -1]
    assert second["bad"].tolist() == [-1] * 4


def test_a_folder_of_nothing_but_bad_images_is_an_error(data, folder):
    for file in (folder / "train").rglob("*.*"):
        file.write_bytes(b"")
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match="32 images in a row cannot be decoded, from train/"):
        take(source, data, 1)


def test_too_few_images_for_a_batch(data):
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match=r"32 images.*batch of 33.*at most 32"):
        train_batches(source, data, batch_size=33, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "config.data.image_size=0 must be at least 1"),
        ({"crop_scale": (0.5, 0.1)}, "config.data.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "config.data.crop_ratio"),
        ({"crop_pct": 1.2}, "config.data.crop_pct=1.2"),
        ({"crop_padding": -1}, "config.data.crop_padding"),
        ({"hflip": 1.5}, "config.data.hflip=1.5 must be a probability"),
        ({"workers": -1}, "config.data.workers=-1"),
        ({"prefetch": -1}, "config.data.prefetch=-1"),
    ],
)
def test_settings_out_of_range(data, change, message):
    source = open_dataset(data, "train")
    with pytest.raises(ValueError, match=message):
        train_batches(source, dataclasses.replace(data, **change), batch_size=8, seed=0)


def test_processes_must_divide_the_batch(data):
    source = open_dataset(data, "train")
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of the 3 processes"):
        train_batches(source, data, batch_size=8, seed=0, process_count=3)
    with pytest.raises(ValueError, match="process 2 of 2"):
        eval_batches(source, data, batch_size=8, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="must not be negative"):
        train_batches(source, data, batch_size=8, seed=-1)


class Points:
    """Examples without images or labels."""

    info = DatasetInfo("points", "0", {})

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 3:
            raise OSError("damaged")
        return {"point": np.array([index, -index], np.float32)}

    def name_of(self, index):
        return f"point {index}"


class Shift:
    @property
    def spec(self):
        return {"point": ((2,), np.dtype(np.float32)), "noise": ((), np.dtype(np.float64))}

    def __call__(self, example, rng):
        noise = 0.0 if rng is None else rng.random()
        return {"point": example["point"] + 1, "noise": np.array(noise)}


def test_the_loader_knows_only_the_spec():
    with loader.batches.train_batches(Points(), Shift(), batch_size=10, seed=0) as batches:
        batch = next(batches)
    assert list(batch) == ["point", "noise", "index", "bad"]
    assert batch["point"].shape == (10, 2)
    assert batch["point"].dtype == np.float32
    np.testing.assert_array_equal(batch["point"][:, 0], batch["index"] + 1)
    assert len(set(batch["noise"].tolist())) == 10
    (row,) = np.flatnonzero(batch["bad"] == 3)
    assert batch["index"][row] == 4
    with loader.batches.eval_batches(Points(), Shift(), batch_size=8) as batches:
        first, second = batches
    assert first["weight"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert second["weight"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert not first["noise"].any()


def test_little_shared_memory_is_reported_before_workers_start(make_data, monkeypatch):
    monkeypatch.setattr("vig_jax.data.loader.iterator.cpu_count", lambda: 4)
    monkeypatch.setattr("vig_jax.data.loader.shared_memory.free_bytes", lambda: 40 * 2**20)
    data = make_data(source="synthetic", image_size=224, workers=4, resize="pillow")
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match=r"but 40 MiB are free.*--shm-size.*workers=0"):
        train_batches(source, data, batch_size=512, seed=0)
    # 17 batches of 20 images, and again 17 for evaluation, which runs beside training.
    with pytest.raises(DataSetError, match="98 MiB"):
        train_batches(source, data, batch_size=20, seed=0)
    with pytest.raises(DataSetError, match="49 MiB"):
        eval_batches(open_dataset(data, "eval"), data, batch_size=20)
    assert not multiprocessing.active_children()


def test_a_closed_iterator_says_so(data):
    batches = train_batches(open_dataset(data, "train"), data, batch_size=8, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
