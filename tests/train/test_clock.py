import pytest

from vig_jax.config import parse, recipes
from vig_jax.train.clock import Clock


def test_waiting_for_data_is_measured_and_hinted_once(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    values = recipes.imagenet()
    values.train.batch_size, values.data.workers = 8, 0
    clock = Clock(parse(values), 0)
    needed = 0.0

    def slow():
        nonlocal now
        while True:
            now += needed
            yield {}

    batches, step = clock.timed(slow()), 0
    for seconds, waiting, share in ((10.0, 0.9, 0.09), (1.0, 0.5, 0.5), (10.0, 2.5, 0.25)):
        assert not clock.hint()  # neither for little waiting nor for a short interval
        needed = waiting
        next(batches)
        now += seconds - waiting
        step += 5
        speed = clock.speed(step)
        assert speed["train/data_wait"] == pytest.approx(share)
        assert speed["train/img_per_s"] == pytest.approx(5 * 8 / seconds)
    hint = clock.hint()
    assert "25% of the time" in hint
    assert "config.data.workers=0" in hint
    needed = 10.0
    next(batches)
    clock.speed(step + 1)
    assert not clock.hint()
