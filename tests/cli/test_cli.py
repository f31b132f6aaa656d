"""The commands on a tiny run: what they print and write, and what they say to bad input."""

import csv
import dataclasses
import functools
import io
import json
import logging
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

import vig_jax
from configs import common
from kernels_pallas.vig_mixer import IMPLEMENTATIONS as MIXER_IMPLEMENTATIONS
from vig_jax import config as configuration
from vig_jax.cli import options
from vig_jax.cli.main import COMMANDS, main
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.models import from_config
from vig_jax.train import loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of two updates of a tiny model on the embedded photographs."""
    settings = common.get_config()
    settings.model.update(
        {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 1}
    )
    settings.model.update({"dtype": "float32", "gla_implementation": "reference"})
    settings.data.update({"source": "fashion_mnist", "image_size": 28, "crop": "none"})
    settings.data.update({"crop_pct": 1.0, "workers": 0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0})
    settings.data.update({"rand_augment_layers": 0, "erase_probability": 0.0})
    settings.optimizer.warmup_epochs = 0.0
    settings.train.update({"batch_size": 500, "epochs": 0, "steps": 2, "eval_every_epochs": 0})
    settings.train.compilation_cache = ""  # not in the home of who tests
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda workdir: [])  # `vig report` draws it
        loop.run(configuration.parse(settings), workdir)
    return workdir


def test_a_run_becomes_a_hub_folder_with_its_metrics(trained, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert main(["convert", str(trained), str(folder), "--to", "hub", "--verify"]) == 0
    assert "verified" in capsys.readouterr().out
    before, after = load_for_inference(trained), load_for_inference(folder)
    assert after.metrics == before.metrics
    assert set(after.metrics) >= {"top1", "top5", "loss"}
    assert (after.step, after.ema) == (2, True)
    assert after.config.model == dataclasses.replace(before.config.model, gla_implementation=None)
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    card = (folder / "README.md").read_text()
    assert f"| top1 | {before.metrics['top1']:.4f} |" in card
    assert "| weights | EMA, after 2 updates |\n| trained on | `fashion_mnist` |" in card


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


def test_help_does_not_import_jax():
    """A first look at a command must not take seconds."""
    program = """
        import contextlib, io, sys
        from vig_jax.cli.main import COMMANDS, main
        for command in COMMANDS:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main([command, "--help"])
        print([name for name in ("jax", "flax", "matplotlib", "grain") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_names_in_help():
    assert vig_jax.list_models() == options.MODELS
    assert options.IMPLEMENTATIONS == MIXER_IMPLEMENTATIONS
    assert (
        tuple(field.name for field in dataclasses.fields(configuration.MeshConfig))
        == options.MESH_AXES
    )


def test_mesh_option(capsys):
    assert options.mesh("fsdp=2,sequence=4") == {"fsdp": 2, "sequence": 4}
    for bad in ("rows=2", "fsdp", "fsdp=2,"):
        with pytest.raises(SystemExit):
            main(["evaluate", "nowhere", "--mesh", bad])
        assert "AXIS=DEVICES" in capsys.readouterr().err


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "vig_jax", "report", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vig report: nowhere is not a workdir")


def test_unknown_command(capsys):
    with pytest.raises(SystemExit):
        main(["evalute"])
    assert "evaluate" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise ValueError("shapes differ")

    monkeypatch.setattr("vig_jax.cli.report.run", broken)
    with pytest.raises(ValueError, match="shapes differ"):
        main(["report", "nowhere"])


def test_log_lines_are_plain(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
    main(["report", "nowhere"])
    logging.getLogger("vig_jax").info("a word")
    assert capsys.readouterr().err.splitlines()[-1] == "a word"


NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "arguments",
    [
        [NOT_UTF8],
        ["evaluate", NOT_UTF8],
        ["evaluate", "run", "--batch-size", NOT_UTF8],
        ["predict", "run", NOT_UTF8],
        ["report", NOT_UTF8],
        ["convert", NOT_UTF8, "b.safetensors", "--model", "vig_t"],
        ["benchmark", "--model", NOT_UTF8],
        ["data", "inspect", NOT_UTF8],
        ["data", "convert", "photos", NOT_UTF8],
        ["data", "convert", "photos", NOT_UTF8, "--to", "parquet"],
        ["train", f"--config={NOT_UTF8}"],
        ["train", f"--{NOT_UTF8}=1"],
        ["train", "--config=fashion_mnist", f"--config.{NOT_UTF8}=1"],
    ],
)
def test_arguments_that_are_not_utf8_end_in_a_message(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["data", "images", "photos", "--per-class", "1"]) == 0
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stderr", errors)
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    errors.flush()
    assert status in (1, 2)
    assert b"caf\\" in errors.buffer.getvalue()
    assert b"Traceback" not in errors.buffer.getvalue()


def test_paths_that_are_not_utf8_are_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["data", "images", NOT_UTF8, "--per-class", "1"]) == 0
    assert main(["data", "inspect", NOT_UTF8, "--sheet", f"{NOT_UTF8}.png"]) == 0
    output.flush()
    assert rb"contact sheet of train: caf\udce9.png" in output.buffer.getvalue()


def test_evaluate(trained, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    assert main(["evaluate", str(trained), "--batch-size", "500", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    numbers = json.loads(file.read_text())
    assert "EMA weights after 2 updates, 2000 images" in printed
    assert f"\ntop1 {numbers['top1']:.4f}  loss" in printed
    recorded = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    logged = next(r["eval/ema_top1"] for r in recorded if "eval/ema_top1" in r)
    assert numbers["top1"] == pytest.approx(logged)
    assert main(["evaluate", str(trained), "--batch-size", "500", "--raw"]) == 0
    assert "raw weights" in capsys.readouterr().out


def test_evaluate_writes_the_confusion_matrix_that_report_draws(trained, tmp_path, capsys):
    recorded = np.load(trained / "confusion.npz")["counts"]
    folder = tmp_path / "mistakes"
    assert main(["evaluate", str(trained), "--batch-size", "500", "--confusion", str(folder)]) == 0
    assert f"wrote {folder / 'confusion.png'}" in capsys.readouterr().out
    with np.load(folder / "confusion.npz") as written:
        np.testing.assert_array_equal(written["counts"], recorded)
        assert "EMA weights after 2 updates" in str(written["description"])
    assert {file.name for file in folder.iterdir()} == {
        "confusion.npz",
        "confusion.png",
        "top_confusions.csv",
    }
    (trained / "confusion.png").unlink(missing_ok=True)
    assert main(["report", str(trained)]) == 0
    assert "finished, 2 of 2 steps, epoch 0.12" in capsys.readouterr().out
    assert (trained / "confusion.png").exists()


def test_evaluate_without_a_run(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "nothing")]) == 1
    assert "holds no finished checkpoint" in capsys.readouterr().err


def test_predict(trained, tmp_path, capsys):
    photographs = tmp_path / "photographs"
    assert main(["data", "images", str(photographs), "--per-class", "1"]) == 0
    (photographs / "Bag" / "broken.png").write_bytes(b"not an image")
    answers, figure = tmp_path / "answers.json", tmp_path / "out" / "answers.png"
    arguments = ["predict", str(trained), str(photographs), "--top", "3", "--batch-size", "4"]
    assert main([*arguments, "--json", str(answers), "--figure", str(figure)]) == 1
    captured = capsys.readouterr()
    assert "broken.png: skipped" in captured.err
    records = json.loads(answers.read_text())
    assert len(records) == 11
    assert [r["image"] for r in records] == sorted(r["image"] for r in records)
    assert sum("error" in r for r in records) == 1
    for record in records:
        probabilities = [answer["probability"] for answer in record.get("top", [])]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == (0 if "error" in record else 3)
        assert sum(probabilities) <= 1 + 1e-5
    assert np.asarray(Image.open(figure)).std() > 10  # something is drawn


def test_predict_does_not_depend_on_the_batch(trained, tmp_path, capsys):
    main(["data", "images", str(tmp_path / "photographs"), "--per-class", "1"])
    capsys.readouterr()
    outputs = []
    for size in ("3", "16"):
        main(["predict", str(trained), str(tmp_path / "photographs"), "--batch-size", size])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 10


def test_predict_without_images(trained, tmp_path, capsys):
    assert main(["predict", str(trained), str(tmp_path)]) == 1
    assert "no image files" in capsys.readouterr().err
    assert main(["predict", str(trained), str(tmp_path / "absent.jpg")]) == 1
    assert "absent.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [[], pytest.param(["--train"], marks=pytest.mark.slow)])
def test_benchmark(mode, tmp_path, capsys, monkeypatch):
    shallow = functools.partial(vig_jax.create_model, depth=1)  # compiles sooner
    monkeypatch.setattr(from_config, "create_model", shallow)
    file, table, picture = tmp_path / "rows.json", tmp_path / "rows.csv", tmp_path / "rows.png"
    arguments = ["benchmark", "--model", "vig_t", "--image-size", "32", "48", "--batch-size", "2"]
    arguments += ["--dtype", "float32", "--gla", "reference", "--repeats", "2"]
    arguments += ["--json", str(file), *mode]
    assert main([*arguments, "--csv", str(table), "--plot", str(picture)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    rows = json.loads(file.read_text())["rows"]
    assert [row["image_size"] for row in rows] == [32, 48]
    for row in rows:
        assert row["img_per_s"] == pytest.approx(2e3 / row["ms"])
        assert row["batch_size"] == 2
        assert row["latency_ms"] > 0
        assert 0 < row["compile_s"] < row["first_result_s"]
        if not mode:
            assert row["pixels_ms"] > 0
            assert row["answer_ms"] > 0
        assert row["program_bytes"] > 1_000_000  # the parameters at least
        assert row["mfu"] is None  # nobody knows the peak of this CPU
    with table.open() as lines:
        assert [row["image_size"] for row in csv.DictReader(lines)] == ["32", "48"]
    with Image.open(picture) as drawn:
        assert drawn.width > 1000


def test_benchmark_checks_and_profiles(tmp_path, capsys, monkeypatch):
    """On five images in batches of two; the CPU has no kernels, so some are made up for it."""
    shallow = functools.partial(vig_jax.create_model, depth=1)
    monkeypatch.setattr(from_config, "create_model", shallow)
    file = tmp_path / "new" / "rows.json"
    arguments = ["benchmark", "--model", "vig_t", "--image-size", "32", "--batch-size", "2"]
    arguments += ["--repeats", "1", "--check", "5", "--profile", "--json", str(file)]
    arguments += ["--gla", "reference"]
    assert main(arguments) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert 0 < row["rms_error"] < 2e-2
    assert round(5 * row["equal_argmax"], 6) in range(6)
    assert row["kernels_ms"] is None
    check, profile = capsys.readouterr().out.splitlines()[3:]
    assert f"5 images against float32: relative RMS error {row['rms_error']:.1e}" in check
    assert "this is a cpu" in profile


@pytest.mark.parametrize(
    ("model", "parameters", "millions"),
    [("vig_t", 5_834_536, "1,196.7"), ("vig_h_t", 28_600_680, "4,537.8")],
)
def test_benchmark_counts(model, parameters, millions, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert main(["benchmark", "--model", model, "--flops", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"{model} at 224 pixels: {parameters:,} parameters" in printed
    assert printed.endswith(f"total {millions}\n")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["parameters"] == parameters
    assert f"{row['macs'] / 1e6:,.1f}" == millions
    assert row["macs"] == sum(row[f"macs_{part}"] for part in ("linear", "conv", "gla"))


@pytest.mark.parametrize(("model", "millions"), [("vig_h_t", "940,205.4"), ("vig_s", "964,191.2")])
def test_benchmark_counts_segmenters(model, millions, tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["benchmark", "--task", "segmentation", "--model", model, "--flops"]
    assert main([*arguments, "--image-size", "512x2048", "--json", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"total {millions}\n")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["image_size"] == "512x2048"
    assert row["macs"] == sum(row[f"macs_{part}"] for part in ("linear", "conv", "gla", "head"))
    assert 0 < row["macs_saved"] < row["macs_head"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--check", "2"], ["--train"]])
def test_benchmark_of_segmentation(mode, tmp_path, capsys, monkeypatch):
    sizes = {"embed_dims": (8,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}

    def small(name, **settings):
        return vig_jax.create_segmenter(name, **(settings | sizes | {"channels": 8}))

    monkeypatch.setattr(from_config, "create_segmenter", small)
    file = tmp_path / "rows.json"
    arguments = ["benchmark", "--task", "segmentation", "--model", "vig_h_t", "--repeats", "1"]
    arguments += ["--gla", "reference"]  # compiles fastest
    arguments += ["--image-size", "32" if "--train" in mode else "32x64", "--batch-size", "2"]
    assert main([*arguments, "--json", str(file), *mode]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["img_per_s"] == pytest.approx(2e3 / row["ms"])
    if "--check" in mode:
        assert 0 < row["rms_error"] < 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--check", "2"], ["--train"]])
def test_benchmark_of_detection(mode, tmp_path, capsys, monkeypatch):
    sizes = {"embed_dims": (8,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}
    sizes |= {"channels": 8, "box_channels": 8, "proposals": 20, "level_proposals": 20}

    def small(name, **settings):
        return vig_jax.create_detector(name, **(settings | sizes))

    monkeypatch.setattr(from_config, "create_detector", small)
    file = tmp_path / "rows.json"
    arguments = ["benchmark", "--task", "detection", "--model", "vig_h_t", "--repeats", "1"]
    arguments += ["--gla", "reference", "--image-size", "32x64", "--batch-size", "2"]
    assert main([*arguments, "--json", str(file), *mode]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["image_size"] == "32x64"
    assert row["img_per_s"] == pytest.approx(2e3 / row["ms"])
    if "--check" in mode:
        assert 0 < row["rms_error"] < 5e-2


def test_benchmark_counts_detectors(tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["benchmark", "--task", "detection", "--model", "vig_h_t", "--flops"]
    assert main([*arguments, "--json", str(file)]) == 0
    assert capsys.readouterr().out.endswith("total 263,583.2\n")
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["image_size"], row["parameters"]) == ("800x1280", 48_106_928)


def test_benchmark_of_an_unknown_model(capsys):
    assert main(["benchmark", "--model", "vig_z"]) == 1
    printed = capsys.readouterr()
    assert "unknown model 'vig_z'" in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats", "0"], "vig benchmark: --repeats is 0; it must be at least 1"),
        (["--batch-size", "0"], "vig benchmark: --batch-size is 0"),
        (
            ["--batch-size", "2", "1"],
            "vig benchmark: --batch-size has 2 numbers and --image-size 1",
        ),
        (["--check", "0"], "vig benchmark: --check is 0"),
        (["--check", "4", "--train"], "vig benchmark: --check compares logits"),
        (
            ["--flops", "--plot", "sizes.png"],
            "vig benchmark: --flops measures nothing: leave --plot",
        ),
        (
            ["--image-size", "32x48", "--plot", "sizes.png"],
            "vig benchmark: --plot draws over the side of square images",
        ),
        (
            ["--image-size", "32x48", "--train"],
            "vig benchmark: --image-size is 32x48; images of training are square",
        ),
        (["--image-size", "4"], "vig benchmark: patch_size=16 must be even"),
    ],
)
def test_benchmark_of_what_cannot_be(options, message, capsys, monkeypatch):
    shallow = functools.partial(vig_jax.create_model, depth=1)
    monkeypatch.setattr(from_config, "create_model", shallow)
    assert main(["benchmark", "--model", "vig_t", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
