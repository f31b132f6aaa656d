import json

from vig_jax.train.calendar import Calendar
from vig_jax.train.writers import RunLog

CALENDAR = Calendar(steps_per_epoch=4, total=12, log_every=1, eval_every=4, save_every=5)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, start, stop, *, evaluated=False):
    with RunLog(workdir, CALENDAR, start_step=start, evaluated=evaluated) as log:
        for step in range(start + 1, stop + 1):
            log.write(step, {"train/loss": 1.0 / step})
            if CALENDAR.eval_due(step):
                log.write(step, {"eval/top1": 0.5})


def test_lines_are_records(tmp_path, capsys):
    write(tmp_path, 0, 4)
    assert lines(tmp_path)[1] == {"step": 2, "epoch": 0.5, "train/loss": 0.5}
    assert lines(tmp_path)[-1] == {"step": 4, "epoch": 1.0, "eval/top1": 0.5}
    assert "step 2/12, epoch 0.50" in capsys.readouterr().err
    assert list((tmp_path / "tensorboard").iterdir())


def test_going_on_repeats_no_line(tmp_path):
    write(tmp_path, 0, 12)
    expected = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')  # killed while writing
    write(tmp_path, 6, 12)
    assert lines(tmp_path) == expected


def test_going_on_at_an_evaluation(tmp_path):
    write(tmp_path, 0, 9)
    with RunLog(tmp_path, CALENDAR, start_step=8, evaluated=True):
        assert [r["step"] for r in lines(tmp_path) if "eval/top1" in r] == [4, 8]
    with RunLog(tmp_path, CALENDAR, start_step=8, evaluated=False):
        assert [r["step"] for r in lines(tmp_path) if "eval/top1" in r] == [4]
        assert lines(tmp_path)[-1]["step"] == 8


def test_empty_metrics_write_nothing(tmp_path):
    with RunLog(tmp_path, CALENDAR, start_step=0, evaluated=False) as log:
        log.write(3, {})
    assert lines(tmp_path) == []
