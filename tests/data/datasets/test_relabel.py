import numpy as np
import pytest

from vig_jax.data.dataset import ClassificationBase
from vig_jax.data.datasets import imagenet
from vig_jax.data.datasets.relabel import match_classes
from vig_jax.errors import DataSetError


class Pets(ClassificationBase):
    """One image of each class."""

    def __init__(self, *class_names):
        super().__init__("pets", class_names)
        self._labels = np.arange(len(class_names), dtype=np.int32)

    def __getitem__(self, index):
        return {"image": b"", "label": int(self._labels[index])}

    def name_of(self, index):
        return self.class_names[index]

    def digest(self):
        return " ".join(self.class_names)


def match(dataset, *model, **options):
    return match_classes(dataset, model, num_classes=len(model), **options)


def test_equal_classes_leave_the_data_set_alone():
    pets = Pets("cat", "dog")
    assert match(pets, "cat", "dog") is pets


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("dog", "emu"), [1, 2]), (("emu", "cat", "dog"), [2, 0, 1]), (("dog",), [1])],
)
def test_classes_are_matched_by_name(names, labels):
    pets = match(Pets(*names), "cat", "dog", "emu")
    assert pets.labels().tolist() == [pets[i]["label"] for i in range(len(names))] == labels
    assert pets.class_names == ("cat", "dog", "emu")
    assert pets.name_of(0) == names[0]
    assert pets.info.fingerprint != Pets(*names).info.fingerprint


def test_unknown_classes_are_listed():
    message = r"has 2 classes that the model does not know: cow, yak; the model's 2 .* cat, dog"
    with pytest.raises(DataSetError, match=message):
        match(Pets("cow", "dog", "yak"), "cat", "dog")


def test_class_map():
    pets = match(Pets("felis", "canis"), "cat", "dog", class_map={"felis": "cat", "canis": "dog"})
    assert pets.labels().tolist() == [0, 1]
    both = match(Pets("lynx", "cat"), "cat", "dog", class_map={"lynx": "cat"})
    assert both.labels().tolist() == [0, 0]


def test_weights_without_names_need_all_classes():
    pets = Pets("cat", "dog")
    assert match_classes(pets, (), num_classes=2) is pets
    with pytest.raises(DataSetError, match=r"has 2 classes, the model 3, .* do not name them"):
        match_classes(pets, (), num_classes=3)


def test_imagenet_names_and_identifiers_are_interchangeable():
    ids, names = imagenet.class_ids(), imagenet.class_names()
    some = [7, 0, 999]
    for model in (ids, names):
        for data in (ids, names):
            matched = match(Pets(*(data[i] for i in some)), *model)
            assert matched.labels().tolist() == some
