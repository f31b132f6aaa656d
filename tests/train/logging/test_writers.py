import json
import re
import sys

import numpy as np
import tqdm

from vig_jax.train.intervals import Intervals
from vig_jax.train.logging import writers
from vig_jax.train.logging.loggers import LoggedRun, open_loggers
from vig_jax.train.logging.writers import RunLog

INTERVALS = Intervals(steps_per_epoch=4, total=12, log_every=1, eval_every=4, save_every=5)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, start, stop, *, evaluated=False):
    with RunLog(workdir, INTERVALS, start_step=start, evaluated=evaluated) as log:
        for step in range(start + 1, stop + 1):
            log.write(step, {"train/loss": 1.0 / step})
            if INTERVALS.eval_due(step):
                log.write(step, {"eval/top1": 0.5})


def test_lines_are_records(tmp_path, capsys):
    write(tmp_path, 0, 4)
    assert lines(tmp_path)[1] == {"step": 2, "epoch": 0.5, "train/loss": 0.5}
    assert lines(tmp_path)[-1] == {"step": 4, "epoch": 1.0, "eval/top1": 0.5}
    assert "step 2/12, epoch 0.50" in capsys.readouterr().err


def test_nan_is_null(tmp_path):
    with RunLog(tmp_path, INTERVALS, start_step=0, evaluated=False) as log:
        log.write(1, {"train/loss": float("nan"), "train/grad_norm": float("inf")})
        log.write(2, {"train/loss": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert lines(tmp_path)[0] == {
        "step": 1,
        "epoch": 0.25,
        "train/loss": None,
        "train/grad_norm": None,
    }
    assert lines(tmp_path)[1]["train/loss"] == 0.5


def test_messages_have_no_control_characters(tmp_path, capsys):
    with RunLog(tmp_path, INTERVALS, start_step=0, evaluated=False) as log:
        log.say("class \x1b[31mcat\nclass dog")
    assert "class \\x1b[31mcat\nclass dog\n" in capsys.readouterr().err


def test_the_time_left_counts_from_the_first_update(tmp_path, monkeypatch, capsys):
    """Checks that compilation, which happens once, is left out."""
    now = 0.0
    monkeypatch.setattr(writers.time, "monotonic", lambda: now)
    with RunLog(tmp_path, INTERVALS, start_step=2, evaluated=False) as log:
        now = 1000.0
        for step in range(3, 13):
            log.advance()
            log.write(step, {"train/loss": 1.0})
            now += 6.0
    printed = capsys.readouterr().err.splitlines()
    assert ["left" in line for line in printed] == [False, *[True] * 8, False]
    assert "step 4/12, epoch 1.00, 00:48 left" in printed[1]  # 8 steps of 6 seconds


def test_bars_of_run_and_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Prompt(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, mininterval=0)

    monkeypatch.setattr(writers.tqdm, "tqdm", Prompt)
    with RunLog(tmp_path, INTERVALS, start_step=2, evaluated=False) as log:
        for step in range(3, 8):
            log.advance()
            log.write(step, {"train/loss": 0.25, "train/data_wait": 0.125})
    shown = capsys.readouterr().err
    assert re.search(r"run: +58%.* 7/12 \[", shown)
    assert re.search(r"epoch 1/3: +100%.* 4/4 \[", shown)
    assert re.search(r"epoch 2/3: +75%.* 3/4 \[", shown)
    assert "loss 0.25  data_wait 0.125" in shown
    assert "[step" not in shown  # no line for each


def test_tensorboard(tmp_path):
    loggers = open_loggers(["tensorboard"], LoggedRun(tmp_path, 0, {}))
    with RunLog(tmp_path, INTERVALS, start_step=0, evaluated=False, loggers=loggers) as log:
        log.figure("first_batch", np.zeros((4, 6, 3), np.uint8))
        log.write(1, {"train/loss": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    for part in (b"first_batch", b"IHDR", b"train/loss"):
        assert part in events.read_bytes()


def test_resuming_repeats_no_line(tmp_path):
    write(tmp_path, 0, 12)
    expected = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')  # killed while writing
    write(tmp_path, 6, 12)
    assert lines(tmp_path) == expected


def test_resuming_at_an_evaluation(tmp_path):
    write(tmp_path, 0, 9)
    with RunLog(tmp_path, INTERVALS, start_step=8, evaluated=True):
        assert [r["step"] for r in lines(tmp_path) if "eval/top1" in r] == [4, 8]
    with RunLog(tmp_path, INTERVALS, start_step=8, evaluated=False):
        assert [r["step"] for r in lines(tmp_path) if "eval/top1" in r] == [4]
        assert lines(tmp_path)[-1]["step"] == 8


def test_empty_metrics_write_nothing(tmp_path):
    with RunLog(tmp_path, INTERVALS, start_step=0, evaluated=False) as log:
        log.write(3, {})
    assert lines(tmp_path) == []
