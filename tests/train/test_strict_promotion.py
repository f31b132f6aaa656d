"""An update works where JAX refuses to mix dtypes (jax_numpy_dtype_promotion="strict")."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, fashion_scenes
from vig_jax.config import parse
from vig_jax.models import ViG
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.protocol import Aux
from vig_jax.train.experiment import Experiment
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.optim.schedule import make_schedule
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step

FOUR = {"name": "vig_h_t", "embed_dims": (16,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def abstract_update(config):
    """Traces the initialisation, the loss, the predictions and the update of a run."""
    experiment = Experiment.from_config(config)
    task, evaluation = experiment.bundle.task, experiment.bundle.evaluation
    train, held_out = (
        {name: jax.ShapeDtypeStruct((8, *x.shape), x.dtype) for name, x in spec.items()}
        for spec in (task.batch_spec, evaluation.batch_spec)
    )
    with jax.set_mesh(experiment.mesh):
        state = jax.eval_shape(experiment.new_state)
        loss, _ = jax.eval_shape(task.loss, state.variables, train, state.key)
        jax.eval_shape(evaluation.predict, state.variables, held_out)
        after, metrics = jax.eval_shape(experiment.train_step, state, train)
    assert loss.dtype == metrics["loss"].dtype == metrics["lr"].dtype == "float32"
    same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), state, after)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vig(dtype, tiny):
    config = tiny(data__rand_augment_layers=1, data__erase_probability=0.5)
    abstract_update(
        dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    )


def test_native_sizes(tiny):
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "erase_probability": 0.5}
    settings |= {"native_sizes": True, "row_images": 2}
    abstract_update(tiny(**{f"data__{key}": value for key, value in settings.items()}))


@pytest.mark.slow
def test_hierarchical_vig():
    values = common.get_config()
    values.model.update(FOUR)
    values.data.update(source="fashion_mnist", image_size=32, color_jitter=0.4, mixup_group=4)
    values.train.batch_size = 8
    abstract_update(parse(values))


@pytest.mark.slow
def test_segmentation():
    values = fashion_scenes.get_config()
    values.model.update(FOUR)
    values.train.batch_size = 8
    values.task.photometric = True
    abstract_update(parse(values))


@dataclasses.dataclass(frozen=True)
class Squares:
    """A task of two parameters of different ranks."""

    model = None
    batch_spec = {"x": jax.ShapeDtypeStruct((2,), np.float32)}  # noqa: RUF012

    def init(self, key):
        return {
            "params": {"patch_embed": {"kernel": jnp.ones((2, 1))}, "head": {"bias": jnp.ones(1)}}
        }

    def loss(self, variables, batch, key):
        params = variables["params"]
        y = batch["x"] @ params["patch_embed"]["kernel"] + params["head"]["bias"]
        return jnp.mean(y**2), Aux()


@pytest.mark.parametrize("schedule", ["cosine", "poly", "poly_from_start"])
@pytest.mark.parametrize(
    "changes", [{}, {"clip_norm": 1.0}, {"freeze": "patch_embed"}, {"layer_decay": 0.5}]
)
def test_optimizer(changes, schedule):
    base = parse(common.get_config()).optimizer
    config = dataclasses.replace(base, schedule=schedule, **changes)
    rates = make_schedule(config, batch_size=4, steps_per_epoch=5, total=50)
    optimizer = make_optimizer(config, rates, ViG(embed_dim=32, depth=1, num_heads=1))
    task = Squares()
    state = jax.eval_shape(lambda: init_state(task, optimizer, seed=0, ema=True))
    step = make_train_step(
        task, optimizer, rates, ema_decay=0.9, mesh=make_mesh(), accumulation_steps=2
    )
    after, metrics = jax.eval_shape(step, state, {"x": jax.ShapeDtypeStruct((4, 2), np.float32)})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["lr"].dtype == "float32"
