from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data import coco_files
from tests.data.photographs import encoded, photo
from vig_jax.config import DataConfig
from vig_jax.data import open_dataset
from vig_jax.data.convert import Options, convert, open_splits


@pytest.fixture
def make_data() -> Callable[..., DataConfig]:
    def make(**changes) -> DataConfig:
        settings = {
            "source": "fashion_mnist",
            "path": None,
            "image_size": 28,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "crop": "random_resized",
            "crop_scale": (0.08, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "crop_padding": 0,
            "hflip": 0.5,
            "crop_pct": 0.875,
            "mixup_alpha": 0.0,
            "cutmix_alpha": 0.0,
            "mixup_group": 128,
            "workers": 0,
            "prefetch": 2,
            "max_bad_images": 100,
            "val_fraction": 0.1,
        }
        return DataConfig(**(settings | changes))

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of three classes, of unequal sizes and kinds, 32 + 7 images."""
    root = tmp_path / "photos"
    number = 0
    for split, counts in (("train", (13, 8, 11)), ("val", (3, 1, 3))):
        for name, count in zip(("cat", "dog", "yak"), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                kind, suffix = (("JPEG", "jpg"), ("PNG", "PNG"), ("BMP", "bmp"))[i % 3]
                image = photo(40 + number % 7, 36 + number % 5, number)
                (root / split / name / f"{i:03}.{suffix}").write_bytes(encoded(image, kind))
                number += 1
    return root


@pytest.fixture
def written(folder, tmp_path):
    """Writes the folder in another format, in order, in two shards; gives the path."""

    def write(kind, **changes):
        destination = tmp_path / kind
        options = Options(**({"to": kind, "shards": 2, "shuffle": False} | changes))
        convert(open_splits(str(folder), "image_folder"), destination, options)
        return destination

    return write


@pytest.fixture
def opened(make_data):
    def opened_(kind, path, part="train", **changes):
        return open_dataset(make_data(source=kind, path=str(path), **changes), part)

    return opened_


@pytest.fixture
def coco_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return coco_files.write(tmp_path / "coco")


@pytest.fixture
def open_coco(make_data, coco_root):
    def open_(part="train", **changes):
        settings = {"source": "coco", "path": str(coco_root), **changes}
        return open_dataset(make_data(**settings), part)

    return open_
