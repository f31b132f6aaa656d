"""A function whose results several programs compute."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding

from vig_jax.train.divided import Divided

HERE = SingleDeviceSharding(jax.devices()[0])
LEAVES = 24
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1, 0, 9)))


def update(state, computed):
    """An update of 24 arrays, with an EMA; `kept` is passed on and `loss` is a result."""
    (params, ema), opt_state, kept = state
    updates, opt_state = OPTIMIZER.update(computed["gradients"], opt_state, params)
    params = optax.apply_updates(params, updates)
    new = (params, optax.incremental_update(params, ema, 0.1)), opt_state, kept
    norm = optax.tree.norm(computed["gradients"])
    return new, {"loss": computed["loss"], "norm": norm, "one": 1.0}


def arguments():
    generator = np.random.default_rng(0)

    def draw():
        return {f"w{n}": generator.normal(size=(n + 1, 3)).astype("f") for n in range(LEAVES)}

    params = draw()
    state = jax.tree.map(jnp.asarray, ((params, draw()), OPTIMIZER.init(params), jnp.arange(3)))
    return state, jax.tree.map(jnp.asarray, {"gradients": draw(), "loss": np.float32(7)})


@pytest.fixture
def divided():
    return Divided(update, in_shardings=(HERE, HERE), out_shardings=HERE, results=30)


def check(results):
    expected = jax.jit(update)(*arguments())
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), results, expected)


def test_results_are_those_of_one_program(divided):
    check(divided(*arguments()))
    compiled = divided.lower(*arguments()).compile()
    check(compiled(*arguments()))
    names = list(divided.programs(*arguments()).programs)
    assert names == [f"update_{number}" for number in range(5)]  # 98 results; 30 in a program
    assert all(f"jit_{name}" in compiled.as_text() for name in names)


def test_nothing_is_computed_twice(divided):
    """Each update of a leaf has one square root, and the norms have two."""
    text = divided.lower(*arguments()).as_text()
    counts = [len(re.findall(r"stablehlo.sqrt", part)) for part in text.split("module @")[1:]]
    assert sum(counts) == LEAVES + 2
    assert max(counts) <= 10


def test_the_state_is_donated(divided):
    state, computed = arguments()
    new, _ = divided(state, computed)
    (params, ema), opt_state, kept = state
    moments = jax.tree.leaves((params, ema, opt_state[1][0].mu, opt_state[1][0].nu))
    assert all(x.is_deleted() for x in moments)
    assert not any(x.is_deleted() for x in jax.tree.leaves((kept, computed)))
    check((new, divided(*arguments())[1]))


def test_types_are_those_of_the_function(divided):
    expected = jax.eval_shape(update, *arguments())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), expected) == jax.tree.map(
        lambda x: (x.shape, x.dtype), divided.trace(*arguments()).out_info
    )


def test_memory_is_that_of_one_program(divided):
    whole = jax.jit(update, donate_argnums=0).lower(*arguments()).compile().memory_analysis()
    memory = divided.lower(*arguments()).compile().memory_analysis()
    gradients = sum(x.nbytes for x in arguments()[1]["gradients"].values())
    for name, slack in (("argument", gradients), ("output", 0), ("alias", 0)):
        bytes_of_whole = getattr(whole, f"{name}_size_in_bytes")
        least = bytes_of_whole - 4096
        assert least <= getattr(memory, f"{name}_size_in_bytes") <= bytes_of_whole + slack + 4096


def test_a_small_function_is_one_program():
    function = Divided(update, in_shardings=(HERE, HERE), out_shardings=HERE)
    assert list(function.programs(*arguments()).programs) == ["update"]
    check(function(*arguments()))
