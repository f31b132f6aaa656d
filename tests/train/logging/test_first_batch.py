"""The preview shows what the first update computes with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vig_jax.sharding.mesh import make_mesh, place_batch
from vig_jax.tasks.protocol import Aux, preparing
from vig_jax.train.logging.first_batch import draw_first_batch, make_preview_step
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step


class Draws:
    """A task and its preview: the input is a random number per row, and the loss is their mean."""

    model = nn.Module()
    batch_spec = {"label": jax.ShapeDtypeStruct((), np.int32)}  # noqa: RUF012

    def __init__(self):
        self.drawn = None

    def init(self, key):
        return {"params": {"scale": jnp.ones(())}}

    def numbers(self, batch, key):
        return jax.random.randint(key, batch["label"].shape, 0, 256)

    def loss(self, variables, batch, key):
        numbers = self.numbers(batch, key)
        return variables["params"]["scale"] * jnp.mean(numbers, dtype=jnp.float32), Aux()

    def inputs(self, batch, key, rows):
        return self.numbers(batch, key)[rows], batch["label"][rows]

    def draw(self, arrays, path):
        self.drawn = arrays
        Image.new("RGB", (4, 3), (9, 8, 7)).save(path)


def preview(task, batch, key, path, parts=1):
    mesh = make_mesh()
    on_devices = place_batch(batch, mesh)
    compute = make_preview_step(task, mesh=mesh, accumulation_steps=parts)
    return draw_first_batch(task, compute, on_devices, key, path=path)


@pytest.mark.parametrize("parts", [1, 2])
def test_shows_what_the_first_update_sees(parts, tmp_path):
    task, mesh, optimizer = Draws(), make_mesh(), optax.sgd(0.0)
    rows = 8
    batch = {"label": np.arange(rows, dtype=np.int32) % 3}
    state = init_state(task, optimizer, seed=3, ema=False)
    figure = preview(task, batch, state.key, tmp_path / "first.png", parts)
    assert figure.shape == (3, 4, 3)
    assert figure[0, 0].tolist() == [9, 8, 7]
    numbers, labels = task.drawn
    np.testing.assert_array_equal(labels, batch["label"][: rows // parts])
    mean = numbers.mean()
    if parts == 2:  # add the draws of the other part
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 1)
        other = {name: x[rows // 2 :] for name, x in batch.items()}
        mean = (mean + np.asarray(task.numbers(other, key)).mean()) / 2
    step = make_train_step(
        task,
        optimizer,
        optax.constant_schedule(0.0),
        ema_decay=0.0,
        mesh=mesh,
        accumulation_steps=parts,
    )
    _, metrics = step(state, place_batch(batch, mesh))
    assert float(metrics["loss"]) == pytest.approx(mean, rel=1e-6)


class Prepares(Draws):
    """Its training and its preview share a program for the draws."""

    traced = 0

    def training_inputs(self, batch, key):
        self.traced += 1
        return self.numbers(batch, key), batch["label"]

    def loss_of_inputs(self, variables, inputs, key):
        return variables["params"]["scale"] * jnp.mean(inputs[0], dtype=jnp.float32), Aux()

    def rows_of(self, inputs, rows):
        return jax.tree.map(lambda x: x[rows], inputs)


def test_a_task_with_another_loss_does_not_prepare_inputs():
    class OtherLoss(Prepares):
        def loss(self, variables, batch, key):
            return super().loss(variables, batch, key)

    class OtherInputs(Prepares):
        def training_inputs(self, batch, key):
            return super().training_inputs(batch, key)

    assert preparing(Draws()) is None
    assert preparing(OtherLoss()) is None
    for task in (Prepares(), OtherInputs()):
        assert preparing(task) is task


def test_inputs_that_training_prepares_are_computed_by_the_same_program(tmp_path):
    task, mesh, optimizer = Prepares(), make_mesh(), optax.sgd(0.0)
    batch = place_batch({"label": np.arange(100, dtype=np.int32)}, mesh)
    state = init_state(task, optimizer, seed=3, ema=False)
    step = make_train_step(task, optimizer, optax.constant_schedule(0.0), ema_decay=0.0, mesh=mesh)
    compute = make_preview_step(task, mesh=mesh, train_step=step)
    draw_first_batch(task, compute, batch, state.key, path=tmp_path / "first.png")
    numbers, labels = task.drawn
    all_numbers = np.asarray(task.numbers(batch, jax.random.fold_in(state.key, 0)))
    np.testing.assert_array_equal(numbers, all_numbers[labels])
    _, metrics = step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(all_numbers.mean(), rel=1e-6)
    assert task.traced == 1


def test_rows_of_a_large_batch_are_spread(tmp_path):
    task = Draws()
    preview(task, {"label": np.arange(100) // 34}, jax.random.PRNGKey(0), tmp_path / "first.png")
    _, labels = task.drawn
    assert len(labels) == 40
    assert (labels[0], labels[-1]) == (0, 2)
    assert np.bincount(labels).min() >= 12
