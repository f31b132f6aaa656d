import json

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.test_mask_folder import SIZES, labels, save, write
from tests.data.photographs import photo
from vig_jax.cli.main import main
from vig_jax.data import open_dataset
from vig_jax.data.mask_inspection import inspect_masks


@pytest.fixture
def root(tmp_path):
    root = write(tmp_path / "scenes")
    (root / "classes.txt").write_text("sky\nroad\nwall\n")
    return root


def test_inspect(root, make_data):
    data = make_data(source="mask_folder", path=str(root))
    dataset = open_dataset(data, "train")
    masks = [labels(*size, number) for number, size in enumerate(SIZES)]
    masks[1][0] = 255
    masks[5][masks[5] == 2] = 0
    for i in (1, 5):
        save(root / f"annotations/train/{i}.png", masks[i])
    save(root / "annotations/train/2.png", np.full(SIZES[2][::-1], 9, np.uint8))
    save(root / "annotations/train/3.png", photo(*SIZES[3]))
    save(root / "annotations/train/4.png", labels(9, 9))
    about = inspect_masks(dataset)
    good = np.concatenate([masks[i].ravel() for i in (0, 1, 5)])
    pixels = np.bincount(good, minlength=256)
    for label, name in enumerate(("sky", "road", "wall")):
        share = pixels[label] / pixels[:3].sum()
        assert about["classes"][name]["pixels"] == pytest.approx(share)
    assert [about["classes"][name]["images"] for name in ("sky", "wall")] == [3, 2]
    assert about["ignored"] == pytest.approx(pixels[255] / len(good))
    assert about["formats"] == {"JPEG RGB + PNG L": 3}
    assert about["width"]["max"] == 40
    reasons = {fault["path"]: fault["reason"] for fault in about["faulty"]}
    assert list(reasons) == [f"images/train/{i}.jpg" for i in (2, 3, 4)]
    for reason, part in zip(
        reasons.values(), ("label 9, which has no class", "colours", "9 x 9"), strict=True
    ):
        assert part in reason
    assert about["faulty"][0]["mask"] == "annotations/train/2.png"
    assert json.loads(json.dumps(about)) == about
    assert inspect_masks(dataset, sample=2)["inspected"] == 2
    assert not about["reduce_zero_label"]
    reduced = inspect_masks(dataset, reduce_zero_label=True)
    assert reduced["classes"]["wall"]["images"] == 0
    assert reduced["ignored"] == pytest.approx((pixels[255] + pixels[0]) / len(good))


def test_the_command(root, tmp_path, capsys):
    (root / "images/val/1.jpg").write_bytes(b"no image")
    about, sheet = tmp_path / "about.json", tmp_path / "new" / "sheet.png"
    command = ["data", "inspect", str(root), "--json", str(about)]
    assert main([*command, "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "train: 6 images, 3 classes" in printed
    assert "JPEG RGB + PNG L: 6" in printed
    assert "0.0% of the pixels have no class" in printed
    assert "faulty: images/val/1.jpg: not a JPEG" in printed
    (line,) = [line for line in printed.splitlines() if "road" in line and "6 images" in line]
    assert line.endswith("#")
    assert list(json.loads(about.read_text())) == ["train", "eval"]
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (6 + 262, 6 + 6 * 262, 3)
    assert pixels[:30, :30].std() > 10


def test_splits_that_are_missing(root, tmp_path, capsys):
    for folder in ("images", "annotations"):
        (root / folder / "val").rename(tmp_path / folder)
    assert main(["data", "inspect", str(root), "--from", "mask_folder", "--sample", "1"]) == 0
    assert "eval is left out: " in capsys.readouterr().out
    command = ["data", "inspect", str(root), "--from", "mask_folder", "--val-fraction", "0.5"]
    assert main(command) == 0
    assert "eval: 3 images" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path), "--from", "voc"]) == 1
    assert "train.txt is missing" in capsys.readouterr().err
    command = ["data", "inspect", str(root), "--from", "ade20k", "--val-fraction", "0.5"]
    assert main(command) == 1
    assert "--val-fraction: ade20k has a validation split already" in capsys.readouterr().err


def test_benchmark(root, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    command = ["data", "benchmark", str(root), "--from", "mask_folder", "--image-size", "16"]
    command += ["--images", "2", "--json", str(file)]
    more = ["--workers", "0", "--batch-size", "2", "--seconds", "0.01"]
    assert main([*command, *more, "--resize", "pillow"]) == 0
    assert "  choose the crop, and its mask " in capsys.readouterr().out
    numbers = json.loads(file.read_text())
    assert list(numbers["stages"]) == [
        "read",
        "decode the image",
        "decode the mask",
        "choose the crop, and its mask",
        "resize the crop",
        "all",
    ]
    assert numbers["loader"]["images_per_second"] > 0
    assert main([*command, "--device-batch", "2"]) == 1
    assert "--device-batch times the augmentation of images with one class" in (
        capsys.readouterr().err
    )


def test_layouts_are_recognised(root, tmp_path, capsys):
    other = tmp_path / "other"
    for kind, folders in {
        "voc": ("JPEGImages", "SegmentationClass"),
        "cityscapes": ("leftImg8bit", "gtFine"),
        "ade20k": ("ADEChallengeData2016/images/training",),
    }.items():
        for folder in folders:
            (other / kind / folder).mkdir(parents=True)
    root.rename(tmp_path / "ADEChallengeData2016")
    for path, message in (
        (other / "voc", "train.txt is missing"),
        (other / "cityscapes", "has no folder leftImg8bit/train"),
        (other / "ade20k", "has no folder annotations/training"),
        (tmp_path, "has no folder images/training"),
        (tmp_path / "ADEChallengeData2016", "has no folder images/training"),
    ):
        assert main(["data", "inspect", str(path)]) == 1
        assert message in capsys.readouterr().err
