import numpy as np
import pytest

from tests.data.photographs import encoded, photo
from vig_jax.cli.main import main
from vig_jax.data import open_dataset
from vig_jax.data.dataset import DetectionDataset
from vig_jax.errors import DataSetError

SIZES = {"a": (60, 40), "b": (40, 60), "c": (50, 50)}
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object>"""


def annotation(size, *objects):
    parts = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{parts}</annotation>"
    )


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    objects = {
        "a": [("dog", (2, 3, 11, 40), 0), ("cat", (1, 1, 60, 40), 1), ("owl", (1, 1, 9, 9), 0)],
        "b": [("tvmonitor", (1.5, 2, 30.5, 20), 0), ("dog", ("x", 1, 2, 3), 0)],
        "c": [("cat", (1, 1, 5, 5), 1)],
    }
    for name, size in SIZES.items():
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encoded(photo(*size)))
        (root / "Annotations" / f"{name}.xml").write_text(annotation(size, *objects[name]))
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb  1\nc\n")
    return root


@pytest.fixture
def open_split(make_data, root):
    return lambda part: open_dataset(make_data(source="voc_detection", path=str(root)), part)


def test_boxes_span_their_first_to_their_last_pixel(open_split):
    train = open_split("train")
    assert isinstance(train, DetectionDataset)
    assert [train.name_of(i) for i in range(len(train))] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert train.sizes().tolist() == [[60, 40], [40, 60]]
    assert train[0]["boxes"].tolist() == [[1, 2, 11, 40]]
    assert train[1]["boxes"].tolist() == [[0.5, 1, 30.5, 20]]
    names = train.info.metadata["instance_names"]
    assert [names[train[i]["labels"][0]] for i in (0, 1)] == ["dog", "tvmonitor"]
    assert len(names) == 20
    assert not train.info.metadata["has_masks"]


def test_difficult_objects_are_crowds(open_split):
    held_out = open_split("eval")
    assert len(held_out) == 3
    truth = held_out.ground_truth(0)
    assert truth.crowd.tolist() == [False, True]
    np.testing.assert_array_equal(truth.areas, [10 * 38, 60 * 40])
    found = held_out.faults(100)
    assert found["unknown category"] == ["image 0, annotation 3"]
    assert found["is a crowd"] == ["image 0, annotation 2", "image 2, annotation 6"]


def test_own_classes(open_split, root):
    before = open_split("train").info.fingerprint
    (root / "classes.txt").write_text("owl\ndog\n")
    train = open_split("train")
    assert train.info.metadata["instance_names"] == ("owl", "dog")
    assert train[0]["labels"].tolist() == [1, 0]
    assert train.info.fingerprint != before


def test_the_command(root, capsys):
    assert main(["data", "inspect", str(root)]) == 0
    assert "2 boxes that can be used for training" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "<annotation/>", "<annotation>"])
def test_malformed_files(open_split, root, content):
    (root / "Annotations" / "b.xml").write_text(content)
    with pytest.raises(DataSetError, match=r"b\.xml is no annotation of PASCAL VOC"):
        open_split("train")
    (root / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(DataSetError, match=r"val\.txt is missing"):
        open_split("eval")
