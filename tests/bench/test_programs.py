"""The comparison with float32, on made-up logits."""

import math

import numpy as np
import pytest

from vig_jax.bench import programs
from vig_jax.bench.throughput import Program


def program(logits):
    """Of batches of two; called once each."""
    batches = iter(np.split(logits, 3))
    return Program(lambda variables, pixels: next(batches), [(None, None)])


@pytest.mark.parametrize(
    ("image", "values", "rms", "argmax"),
    [
        (0, [1, 0, 0, 0], 0.0, 1.0),
        (3, [0, 0, 0, 1], 0.0, 1.0),
        (3, [1, 0, 0, 0], math.sqrt(2 / 5), 0.8),
        (5, [9, 9, 9, 9], 0.0, 1.0),  # not compared
        (5, [math.nan, 0, 0, 0], math.inf, 1.0),
    ],
)
def test_agreement(image, values, rms, argmax, monkeypatch):
    config = programs.benchmark_config("vig_t", image_size=32, batch_size=2)
    expected = np.resize(np.eye(4, dtype=np.float32), (6, 4))
    logits = expected.copy()
    logits[image] = values
    monkeypatch.setattr(programs, "_logits_program", lambda wide: program(expected))
    found = programs.agreement(config, program(logits), images=5)
    assert (found.rms, found.argmax) == (pytest.approx(rms), pytest.approx(argmax))
