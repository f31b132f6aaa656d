import json
import os
import subprocess
import sys

from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.bench.data import host_stages
from vig_jax.cli.main import main
from vig_jax.data.box_inspection import inspect_boxes
from vig_jax.data.formats.coco_index import FAULTS


def test_inspect(open_coco, coco_root):
    (coco_root / "train2017" / "0009.jpg").write_bytes(encoded(photo(40, 60)))
    (coco_root / "train2017" / "0004.jpg").write_bytes(b"")
    about = inspect_boxes(open_coco())
    assert (about["images"], about["inspected"]) == (3, 3)
    assert about["classes"] == {
        "crab": {"boxes": 1, "images": 1},
        "seal": {"boxes": 3, "images": 3},
    }
    assert about["boxes"]["max"] == 2
    assert about["formats"] == {"JPEG RGB": 1}
    reasons = {fault["path"]: fault["reason"] for fault in about["faulty"]}
    assert "40 x 60 pixels, but the annotations are for 60 x 40" in reasons["train2017/0009.jpg"]
    assert reasons["train2017/0004.jpg"] == "the file is empty"
    assert about["annotations"][FAULTS[2]] == ["image 1, annotation 21"]
    assert json.loads(json.dumps(about)) == about
    assert inspect_boxes(open_coco(), sample=2, most_boxes=1)["inspected"] == 2


def test_the_command(coco_root, tmp_path, capsys):
    about, sheet = tmp_path / "about.json", tmp_path / "new" / "sheet.png"
    command = ["data", "inspect", str(coco_root), "--json", str(about), "--sheet", str(sheet)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "train: 3 images, 2 classes" in printed
    assert "eval: 5 images, 2 classes" in printed
    assert "4 boxes that can be used for training" in printed
    assert "  boxes  1 to 2, median 1" in printed
    assert f"  {FAULTS[4]}: 1 (image 1, annotation 23)" in printed
    assert json.loads(about.read_text())["eval"]["images"] == 5
    with Image.open(sheet) as opened:
        assert opened.format == "PNG"
    file = coco_root / "annotations" / "instances_val2017.json"
    (coco_root / "annotations" / "images").mkdir()
    for image in (coco_root / "val2017").iterdir():
        image.rename(coco_root / "annotations" / "images" / image.name)
    assert main(["data", "inspect", str(file), "--val-fraction", "0.4"]) == 0
    assert "eval: 2 images, 2 classes" in capsys.readouterr().out
    assert main(["data", "inspect", str(coco_root), "--val-fraction", "0.4"]) == 1
    assert "divides one annotation file" in capsys.readouterr().err


def test_the_reader_of_the_output_has_ended(coco_root):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "vig_jax", "data", "inspect", str(coco_root)]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ended.returncode == 141
    assert "BrokenPipe" not in ended.stderr


def test_stages_are_timed(open_coco, make_data):
    found = host_stages(open_coco(), make_data(resize="pillow"), 1)
    assert list(found) == ["read", "decode", "resize and flip", "boxes and masks", "all"]
    assert found["all"]["best"] > found["boxes and masks"]["best"] > 0
