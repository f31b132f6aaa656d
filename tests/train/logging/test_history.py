import json

import numpy as np
import pytest
from PIL import Image

from vig_jax.cli.main import main
from vig_jax.errors import ReportError
from vig_jax.metrics.confusion import Confusion
from vig_jax.train.logging.history import RunHistory, write_report


def training(step):
    values = {"loss": 2 / step, "grad_norm": 1.0, "lr": 1e-3, "img_per_s": 100.0 + step}
    return {"step": step, "epoch": step / 4} | {f"train/{k}": v for k, v in values.items()}


def evaluation(step, top1, **ema):
    values = {"loss": 1.0, "top1": top1, "top5": 1.0, **ema}
    return {"step": step, "epoch": step / 4} | {f"eval/{k}": v for k, v in values.items()}


LINES = [
    *(training(step) | {"train/data_wait": 0.25} for step in (1, 2, 3, 4)),
    evaluation(4, 0.5, ema_top1=0.4),
    evaluation(8, 0.3, ema_top1=0.6),
    evaluation(12, 0.4, ema_top1=0.2),
]


@pytest.fixture
def workdir(tmp_path):
    """A function from lines to the workdir of a run of 12 steps that has written them."""

    def make(lines=LINES, text=""):
        config = {
            "model": {"name": "vig_t"},
            "data": {"path": None, "source": "fashion_mnist"},
            "train": {"log_every_steps": 50},
        }
        facts = {"config": config, "metadata": {}, "total_steps": 12}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        written = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(written + text)
        return tmp_path

    return make


def test_nan_of_a_run_that_diverged_is_left_out(workdir):
    text = json.dumps(evaluation(8, float("nan"))) + "\n"
    history = RunHistory.read(workdir([evaluation(4, 0.5)], text))
    assert history.best() == ("top1", evaluation(4, 0.5))
    assert history.series("eval/top1") == ([1.0], [0.5])
    assert "nan" not in history.summary()
    write_report(workdir([evaluation(4, 0.5)], text))


def test_summary(workdir):
    lines = RunHistory.read(workdir()).summary().splitlines()
    assert lines[0] == "vig_t on fashion_mnist: finished, 12 of 12 steps, epoch 3.00"
    assert lines[1].startswith("best      epoch 2.00 ")  # by the EMA weights
    assert "ema_top1 0.6000" in lines[1]
    assert lines[1].endswith("by ema_top1")
    assert lines[2].startswith("last      epoch 3.00 ")
    assert lines[3] == "training  epoch 1.00    loss 0.5000"
    assert lines[4] == "speed     102.5 images/s (median), 25.0% of the time waiting for data"


def test_raw_weights_count_without_ema(workdir):
    history = RunHistory.read(workdir([evaluation(4, 0.5), evaluation(8, 0.3)]))
    assert history.best() == ("top1", evaluation(4, 0.5))


def test_unfinished_run(workdir, capsys):
    folder = workdir([training(3)], text='{"step": 4, "epo')  # being written just now
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "unfinished, 3 of 12 steps, epoch 0.75" in printed
    assert "not evaluated yet" in printed
    assert printed.splitlines()[-1] == f"wrote {folder / 'curves.png'}"
    assert not (folder / "confusion.png").exists()


def test_nothing_to_report(workdir, tmp_path, capsys):
    with pytest.raises(ReportError, match=r"metrics\.jsonl is empty.*log_every_steps=50"):
        write_report(workdir([]))
    (tmp_path / "config.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(ReportError, match="written by an older version"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert (
        "is not a workdir of train.py: it lacks config.json or metrics.jsonl"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("lines", [LINES, [training(s) for s in range(1, 300)]])
def test_figures(workdir, lines):
    folder = workdir(lines)
    Confusion.from_counts(np.array([[3, 1], [0, 2]]), ["cat", "dog"], "vig_t").save(folder)
    files = write_report(folder)
    assert [file.name for file in files] == ["curves.png", "confusion.png", "top_confusions.csv"]
    assert "cat,dog,1,0.25" in files[2].read_text()
    for file in files[:2]:
        with Image.open(file) as drawn:
            assert np.asarray(drawn.convert("L")).std() > 10  # something is drawn


def test_two_classes_show_f1_in_place_of_top5(workdir, monkeypatch):
    import matplotlib.axes

    labels = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "plot",
        lambda axes, *args, **style: labels.append(style["label"]) or plot(axes, *args, **style),
    )
    write_report(workdir([evaluation(4, 0.5, f1=0.3)]))
    assert [label for label in labels if label in ("top-1", "F1", "top-5")] == ["top-1", "F1"]
    labels.clear()
    write_report(workdir())
    assert [label for label in labels if label in ("top-1", "F1", "top-5")] == ["top-1", "top-5"]


def test_a_run_of_one_evaluation_draws_points_that_can_be_read(workdir, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vig_jax.train.logging.history.save_figure", lambda figure, path: drawn.append(figure)
    )
    write_report(workdir([training(4), evaluation(12, 0.75)]))
    accuracy = next(axes for axes in drawn[0].axes if "accuracy" in axes.get_title())
    line = next(line for line in accuracy.lines if line.get_label() == "top-1")
    assert line.get_markersize() > 5
    assert "75" in {text.get_text() for text in accuracy.texts}
    low, high = accuracy.get_xlim()
    assert low <= 0
    assert high > 3  # the epochs of the run
