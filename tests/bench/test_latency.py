"""Latencies of made-up calls, whose steps sleep."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.bench.latency import HostCall, measure_latency
from vig_jax.bench.throughput import Program


@pytest.fixture
def spend(monkeypatch):
    """Returns a function that makes a step; calling the step advances the clock."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step(seconds):
        def run(*_):
            clock[0] += seconds

        return run

    return step


def test_each_step_is_measured(spend):
    calls, pause = [], spend(0.002)

    def run(count):
        calls.append(count)
        for _ in range(count):
            pause()

    host = HostCall(put=spend(0.004), start=spend(0.016), wait=spend(0.001), fetch=spend(0.008))
    found = measure_latency(run, host, repeats=3, sample_seconds=0.01)
    assert set(calls) == {1, 5}
    assert dataclasses.astuple(found) == pytest.approx((2, 17, 5, 8, 28))


def test_without_steps(spend):
    found = measure_latency(spend(0.002), None, repeats=2, sample_seconds=0.01)
    assert found.queued_ms == pytest.approx(0.4)  # one pause for five calls
    assert found.waited_ms == pytest.approx(2)
    assert (found.pixels_ms, found.fetch_ms, found.answer_ms) == (None, None, None)


def test_the_steps_of_a_program():
    compiled = jax.jit(lambda scale, x: scale * x).lower(2.0, jnp.ones(3)).compile()
    program = Program(compiled, [(jnp.float32(2), jnp.arange(3.0)), (jnp.float32(2), jnp.ones(3))])
    host = program.host_call()
    pixels = host.put()
    host.wait(pixels)
    first, second = host.start(pixels), host.start(pixels)
    assert first is not second  # a fetched array would answer from the host
    assert isinstance(host.fetch(first), np.ndarray)
    np.testing.assert_array_equal(host.fetch(second), [0, 2, 4])
    assert Program(compiled, program.inputs, state=1).host_call() is None
