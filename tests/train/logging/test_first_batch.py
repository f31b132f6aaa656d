"""The picture shows what the first update computes with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vig_jax.sharding.mesh import make_mesh, place_batch
from vig_jax.train.logging.first_batch import draw_first_batch, model_inputs
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step


class Draws:
    """A task whose inputs are a random number per row, and whose loss is their mean."""

    headline = "none"

    def init(self, key):
        return {"scale": jnp.ones(())}

    def training_inputs(self, batch, key):
        drawn = jax.random.randint(key, batch["label"].shape, 0, 256)
        images = jnp.broadcast_to(drawn[:, None, None, None], batch["image"].shape)
        return images, jax.nn.one_hot(batch["label"], 3)

    def pixels(self, images):
        return images.astype(jnp.uint8)

    def loss(self, params, batch, key):
        images, _ = self.training_inputs(batch, key)
        return params["scale"] * jnp.mean(images, dtype=jnp.float32)

    def evaluate(self, params, batch):
        raise NotImplementedError

    def metrics(self, sums):
        raise NotImplementedError


@pytest.mark.parametrize("parts", [1, 2])
def test_shows_what_the_first_update_sees(parts):
    task, mesh, optimizer = Draws(), make_mesh(), optax.sgd(0.0)
    rows = 8
    batch = {
        "image": np.zeros((rows, 2, 2, 3), np.uint8),
        "label": np.arange(rows, dtype=np.int32) % 3,
    }
    placed = place_batch(batch, mesh)
    state = init_state(task, optimizer, seed=3, ema=False)
    pixels, targets = model_inputs(task, placed, state.key, mesh, accumulation_steps=parts)
    np.testing.assert_array_equal(targets.argmax(1), batch["label"][: rows // parts])
    mean = pixels.mean()
    if parts == 2:  # the other part's draws
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
        other = {name: x[rows // 2 :] for name, x in batch.items()}
        mean = (mean + np.asarray(task.training_inputs(other, key)[0]).mean()) / 2
    step = make_train_step(
        task,
        optimizer,
        optax.constant_schedule(0.0),
        ema_decay=0.0,
        mesh=mesh,
        accumulation_steps=parts,
    )
    _, metrics = step(state, placed)
    assert float(metrics["loss"]) == pytest.approx(mean, rel=1e-6)


def test_rows_of_a_large_batch_are_spread():
    batch = {"image": np.zeros((100, 1, 1, 3), np.uint8), "label": np.arange(100) // 34}
    pixels, targets = model_inputs(
        Draws(), place_batch(batch, make_mesh()), jax.random.PRNGKey(0), make_mesh(),
        accumulation_steps=1,
    )  # fmt: skip
    assert pixels.shape == (40, 1, 1, 3)
    labels = targets.argmax(1)
    assert (labels[0], labels[-1]) == (0, 2)
    assert np.bincount(labels).min() >= 12


def test_sheet(tmp_path, monkeypatch):
    import matplotlib.axes

    captions = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "set_title", lambda axes, text, **_: captions.append(text)
    )
    pixels = np.full((11, 6, 6, 3), (200, 30, 40), np.uint8)
    targets = np.zeros((11, 3), np.float32)
    targets[:, 0], targets[0] = 1, (0.38, 0.02, 0.6)
    path = tmp_path / "first_batch.png"
    sheet = draw_first_batch(pixels, targets, ["a cat with a long name", "dog"], path)
    assert captions[0] == "class 2 60%\na cat with a lo… 38%"
    assert captions[1:] == ["a cat with a lo… 100%"] * 10
    with Image.open(path) as drawn:
        stored = np.asarray(drawn.convert("RGB"))
    red = (stored == (200, 30, 40)).all(-1).mean()
    assert 0.3 < red < 0.9
    np.testing.assert_array_equal(sheet, stored)
