"""`vig data`: what the commands print and write."""

import dataclasses
import json

import pytest
from PIL import Image

from vig_jax.bench import augmentation
from vig_jax.bench.augmentation import device_speed
from vig_jax.cli.main import main


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photographs"
    assert main(["data", "images", str(root), "--per-class", "4"]) == 0
    return root


@pytest.mark.parametrize("action", ["images", "convert", "inspect", "benchmark"])
def test_help(action, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", action, "--help"])
    assert ended.value.code == 0
    assert f"vig data {action}" in capsys.readouterr().out


def test_an_action_is_required(capsys):
    for arguments in (["data"], ["data", "some folder"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "'images', 'convert', 'inspect', 'benchmark'" in capsys.readouterr().err


def test_convert_and_inspect(photographs, tmp_path, capsys):
    records = tmp_path / "records"
    arguments = [str(photographs), str(records), "--workers", "0", "--val-fraction", "0.25"]
    assert main(["data", "convert", *arguments, "--shards", "2", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "train: 30 images in 2 shards" in printed
    assert "val: 10 images in 1 shards" in printed
    assert "verified: 40 images" in printed
    assert f"--config.data.source=array_record --config.data.path={records}" in printed
    assert main(["data", "convert", *arguments, "--shards", "2"]) == 1
    assert "not an empty folder" in capsys.readouterr().err

    about, sheet = tmp_path / "about.json", tmp_path / "sheets" / "sheet.png"
    assert main(["data", "inspect", str(records), "--json", str(about), "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "train: 30 images, 10 classes" in printed
    assert "PNG RGB: 30" in printed
    assert "  Trouser " in printed
    found = json.loads(about.read_text())
    assert found["train"]["classes"]["Bag"] == 3
    assert found["eval"]["width"] == {"min": 28, "median": 28, "mean": 28, "max": 28}
    with Image.open(sheet) as opened:
        assert opened.format == "PNG"


def test_json_goes_through_a_link(photographs, tmp_path):
    """Checks that a link such as /dev/stdout is written to, not replaced."""
    file, link = tmp_path / "about.json", tmp_path / "link.json"
    link.symlink_to(file)
    assert main(["data", "inspect", str(photographs), "--json", str(link)]) == 0
    assert link.is_symlink()
    assert sum(about["images"] for about in json.loads(file.read_text()).values()) == 40


def test_an_interruption_says_how_to_continue(photographs, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    command = ["data", "convert", str(photographs), str(tmp_path / "out"), "--workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr("vig_jax.data.convert.shard.write_shard", interrupted)
        assert main(command) == 1
    assert "--resume continues" in capsys.readouterr().err
    assert main([*command, "--resume", "--verify"]) == 0


def test_an_undivided_folder(photographs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "convert", str(photographs), str(out), "--to", "tar", "--workers=0"]) == 0
    printed = capsys.readouterr().out
    assert "has no validation split" in printed
    assert "--config.data.split=stratified" in printed
    assert main(["data", "inspect", str(out), "--sample", "3"]) == 0
    assert "train: 40 images, 10 classes, 3 inspected" in capsys.readouterr().out


def test_bad_images(photographs, tmp_path, capsys):
    bad = tmp_path / "bad"
    for name in ("cat", "dog"):
        (bad / name).mkdir(parents=True)
        for i, file in enumerate(sorted((photographs / "Bag").iterdir())):
            (bad / name / f"{i}.png").write_bytes(file.read_bytes())
    (bad / "dog" / "1.png").write_bytes(b"")
    assert main(["data", "inspect", str(bad)]) == 0
    assert "undecodable: dog/1.png: " in capsys.readouterr().out
    command = ["data", "convert", str(bad), str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 1
    assert "--max-errors 0 allows no more" in capsys.readouterr().err
    assert main([*command, "--resume", "--max-errors", "1"]) == 0
    assert "train: 7 images in 1 shards, 1 left out (errors.jsonl)" in capsys.readouterr().out


def test_benchmark(photographs, tmp_path, capsys, monkeypatch):
    def without_rand_augment(dataset, data, batch_size, seconds):
        data = dataclasses.replace(data, rand_augment_layers=0)  # it compiles long
        return device_speed(dataset, data, batch_size, seconds)

    monkeypatch.setattr(augmentation, "device_speed", without_rand_augment)
    file = tmp_path / "numbers.json"
    command = ["data", "benchmark", str(photographs), "--image-size", "16", "--images", "4"]
    command += ["--seconds", "0.05"]
    assert main([*command, "--device-batch", "6", "--resize", "pillow", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "by Pillow" in printed
    assert "  crop and resize " in printed
    assert "ms for 6 images of 16 x 16" in printed
    numbers = json.loads(file.read_text())
    assert numbers["resize"] == "pillow"
    assert list(numbers["stages"]) == ["read", "decode", "crop and resize", "all"]
    assert all(0 < times["best"] <= times["median"] for times in numbers["stages"].values())
    device = numbers["device"]
    assert device["images_per_second"] == pytest.approx(6e3 / device["milliseconds_per_batch"])
    assert "loader" not in numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent"], "absent is not a folder"),
        (["inspect", "fashion_mnist", "--sample", "0"], "--sample 0 must be at least 1"),
        (["benchmark", "fashion_mnist", "--device-batch", "3"], "--device-batch 3 must be even"),
        (["convert", "absent", "out"], "absent is not a folder"),
        (["convert", "fashion_mnist", "out", "--raw", "--to", "tar"], "raw=True must be false"),
        (["convert", "fashion_mnist", "out", "--quality", "101"], "quality=101 must be 1 to 100"),
    ],
)
def test_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_such_size(capsys):
    with pytest.raises(SystemExit):
        main(["data", "convert", "a", "b", "--shard-size", "some"])
    assert "'some' is not a size like 500M" in capsys.readouterr().err
