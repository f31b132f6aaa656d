"""A function of several programs behaves like one that is jitted."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.train.programs import Programs

ROWS = 1 << 10


@pytest.fixture
def traced():
    """Names of the programs that were traced, in order."""
    return []


@pytest.fixture
def norm_of_sum(traced):
    """`(state, x) -> (state + 1, |x @ x.T| + state)`, in two programs."""

    def product(x):
        traced.append("product")
        return {"product": x @ x.T}

    def finish(state, given):
        traced.append("finish")
        return state + 1, jnp.sqrt(jnp.sum(given["product"] ** 2)) + state

    def sequence(programs, state, x):
        return programs["finish"](state, programs["product"](x))

    programs = {"product": jax.jit(product), "finish": jax.jit(finish, donate_argnums=0)}
    return Programs(programs, sequence)


def arguments():
    return np.float32(3), np.full((ROWS, 2), 2, np.float32)


def check(function):
    state, total = function(*arguments())
    assert (float(state), float(total)) == (4, 8 * ROWS + 3)


def test_called_and_compiled_for_shapes(norm_of_sum, traced):
    check(norm_of_sum)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments())
    compiled = norm_of_sum.lower(*shapes).compile()
    check(compiled)
    check(compiled)
    assert traced == ["product", "finish"]
    assert "dot" in compiled.as_text()
    assert "donated" in norm_of_sum.lower(*shapes).as_text() or "alias" in compiled.as_text()
    assert jax.eval_shape(norm_of_sum, *shapes)[1].shape == ()


def test_lowered_for_another_platform(norm_of_sum):
    text = norm_of_sum.trace(*arguments()).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("module @jit_") == 2


def test_memory(norm_of_sum):
    memory = norm_of_sum.lower(*arguments()).compile().memory_analysis()
    product = 4 * ROWS * ROWS  # what the second program takes
    assert product <= memory.argument_size_in_bytes <= product + 64
    assert memory.alias_size_in_bytes == 4
    assert memory.temp_size_in_bytes < 2 * product


def test_programs_compile_side_by_side(norm_of_sum, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    compile_one = jax.stages.Lowered.compile

    def compile_together(lowered):
        both.wait()  # raises unless both compile at the same time
        return compile_one(lowered)

    lowered = norm_of_sum.lower(*arguments())
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_together)
    check(lowered.compile())


def test_an_error_of_a_program_is_raised():
    def no_sequence(programs, x):
        return programs["first"](x)

    programs = Programs({"first": jax.jit(lambda x: x + np.ones(2))}, no_sequence)
    with pytest.raises(TypeError, match="incompatible shapes"):
        programs.lower(np.ones(3))
