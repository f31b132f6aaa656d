"""Programs that are compiled before they are called."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.sharding.mesh import make_mesh
from vig_jax.train.compile_ahead import batch_of, compilation_threads, compiled_ahead
from vig_jax.train.programs import Programs

STATE = {"scale": jax.ShapeDtypeStruct((), np.float32)}
BATCH = batch_of({"x": jax.ShapeDtypeStruct((3,), np.float32)}, 2)


@pytest.fixture
def threads():
    with compilation_threads() as pool:
        yield pool


@pytest.fixture
def traces():
    """Where the function was traced: the thread and the shape of the batch."""
    return []


@pytest.fixture
def total(traces):
    @jax.jit
    def total(state, batch):
        traces.append((threading.current_thread(), batch["x"].shape))
        return state["scale"] * jnp.sum(batch["x"])

    return total


def call(function, rows=2, dtype=np.float32):
    state = {"scale": np.asarray(2, dtype)}
    return float(function(state, {"x": np.ones((rows, 3), np.float32)}))


def test_the_caller_traces_once(total, traces, threads):
    program = compiled_ahead(total, (STATE, BATCH), threads)
    assert traces == [(threading.current_thread(), (2, 3))]
    assert [call(program), call(program)] == [12, 12]
    assert len(traces) == 1


def test_a_thread_traces_under_the_mesh(total, traces, threads):
    mesh = make_mesh()
    program = compiled_ahead(total, (STATE, BATCH), threads, mesh)
    with jax.set_mesh(mesh):
        assert [call(program), call(program)] == [12, 12]
    ((thread, _),) = traces
    assert thread is not threading.current_thread()


def test_a_batch_of_another_size(total, traces, threads):
    program = compiled_ahead(total, (STATE, BATCH), threads)
    assert [call(program), call(program, rows=4), call(program)] == [12, 24, 12]
    assert [shape for _, shape in traces] == [(2, 3), (4, 3)]


def test_a_state_of_other_types(total, traces, threads):
    program = compiled_ahead(total, (STATE, BATCH), threads)
    assert [call(program, dtype=np.int32), call(program, dtype=np.int32)] == [12, 12]
    assert len(traces) == 2


def test_an_error_of_the_compiler_is_raised_by_the_call(threads):
    class Broken:
        out_info = None

        def trace(self, *arguments):
            return self

        def lower(self):
            return self

        def compile(self):
            raise RuntimeError("out of registers")

    program = compiled_ahead(Broken(), (STATE, BATCH), threads)
    with pytest.raises(RuntimeError, match="out of registers"):
        call(program)


def test_programs_are_compiled_each_by_itself(total, traces, threads):
    double = jax.jit(lambda batch: {"x": 2 * batch["x"]})

    def sequence(programs, state, batch):
        return programs["total"](state, programs["double"](batch))

    function = Programs({"double": double, "total": total}, sequence)
    program = compiled_ahead(function, (STATE, BATCH), threads)
    assert isinstance(program, Programs)
    assert traces == [(threading.current_thread(), (2, 3))]
    assert [call(program), call(program), call(program, rows=4)] == [24, 24, 48]
    assert len(traces) == 2


def test_what_is_not_jitted_stays(threads):
    assert compiled_ahead(call, (STATE, BATCH), threads) is call
