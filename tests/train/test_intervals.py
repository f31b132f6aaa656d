import dataclasses

import pytest

from configs import common
from vig_jax.config import parse
from vig_jax.train.intervals import Intervals

CONFIG = dataclasses.replace(
    parse(common.get_config()).train,
    epochs=4,
    log_every_steps=7,
    eval_every_epochs=2,
    checkpoint_every_steps=10,
)


def test_what_is_due():
    intervals = Intervals.from_config(CONFIG, steps_per_epoch=6)
    steps = range(intervals.total + 1)
    assert intervals.total == 24
    assert [s for s in steps if intervals.log_due(s)] == [7, 14, 21, 24]
    assert [s for s in steps if intervals.eval_due(s)] == [12, 24]
    assert [s for s in steps if intervals.save_due(s)] == [10, 20, 24]


def test_every_unit():
    changes = {"eval_every_epochs": 0, "checkpoint_every_steps": 0, "batch_size": 8}
    in_steps = dataclasses.replace(
        CONFIG, epochs=0, steps=20, eval_every_steps=9, checkpoint_every_epochs=1, **changes
    )
    intervals = Intervals.from_config(in_steps, steps_per_epoch=6)
    assert (intervals.total, intervals.eval_every, intervals.save_every) == (20, 9, 6)
    in_examples = dataclasses.replace(
        CONFIG,
        epochs=0,
        examples=161,  # 20 batches of 8 and a part of one
        eval_every_examples=64,
        checkpoint_every_examples=1,
        **changes,
    )
    intervals = Intervals.from_config(in_examples, steps_per_epoch=6)
    assert (intervals.total, intervals.eval_every, intervals.save_every) == (21, 8, 1)


def test_zero_means_only_at_the_end():
    intervals = Intervals(steps_per_epoch=3, total=9, log_every=0, eval_every=0, save_every=0)
    for due in (intervals.log_due, intervals.eval_due, intervals.save_due):
        assert [s for s in range(10) if due(s)] == [9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "how long is the run.* all 0"),
        ({"epochs": -1}, r"config\.train\.epochs=-1 is negative"),
        ({"steps": 9}, r"config\.train\.epochs=4 and config\.train\.steps=9 say .* twice"),
        ({"eval_every_steps": 9}, "eval_every_epochs=2 and config.train.eval_every_steps=9"),
        ({"checkpoint_every_examples": -9}, "checkpoint_every_examples=-9 is negative"),
        ({"log_every_steps": -1}, "log_every_steps=-1 is negative"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Intervals.from_config(dataclasses.replace(CONFIG, **change), steps_per_epoch=6)
