"""A run small enough for tests: 32 images of 16 x 16 pixels, a model of one block."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

import vig_jax
from configs import common
from vig_jax.config import parse
from vig_jax.inference import loaded_model
from vig_jax.train import loop
from vig_jax.weights.load import save_safetensors


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Runs end without the figures of their report, which take seconds to draw."""
    monkeypatch.setattr(loop, "write_report", lambda workdir: [])


SHAPES_OF = functools.cache(loaded_model.shapes_of)


@pytest.fixture(autouse=True)
def loads_traced_once(monkeypatch):
    """Loads of equal models share their shapes; each would trace the model for a second."""
    monkeypatch.setattr(loaded_model, "shapes_of", SHAPES_OF)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 5)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
                pixels[..., 0] //= 1 + 3 * (label == "cat")  # something to learn
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny(image_folder, compilation_cache):
    """A function from changes, by dotted key, to a config of 3 epochs of 4 steps."""

    def config(**changes):
        values = common.get_config()
        values.model.update(
            img_size=16,
            patch_size=8,
            embed_dim=32,
            depth=1,
            num_heads=1,
            drop_path_rate=0.1,
            dtype="float32",
            gla_implementation="reference",  # compiles fastest
        )
        values.data.update(
            path=str(image_folder), image_size=16, mixup_group=4, workers=0, crop_scale=(0.5, 1.0)
        )
        values.data.rand_augment_layers = 0  # compiles long, and is tested elsewhere
        values.optimizer.update(lr_batch=8, warmup_epochs=1.0, warmup_lr=1e-4)
        values.train.update(
            batch_size=8, epochs=3, ema_decay=0.9, log_every_steps=1, checkpoint_every_steps=5
        )
        values.train.compilation_cache = ""  # there is the fixture's
        for key, value in changes.items():
            *group, name = key.split("__")
            (values[group[0]] if group else values)[name] = value
        return parse(values)

    return config


@pytest.fixture
def weights(tmp_path):
    """A file for images of another size and for other classes than the run's, and what it holds."""
    model = vig_jax.create_model(
        "vig_t", num_classes=10, img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=1
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda x: generator.normal(1, 0.1, x.shape).astype(np.float32), shapes)
    file = tmp_path / "weights.safetensors"
    save_safetensors(params, file, model_name="vig_t", averaged=None)
    return file, params
