"""Data sets as random access: index in, encoded image and label out.

A folder of images is laid out like this, one folder per class (other folders inside a class folder
are looked into; hidden files and folders are not):

    PATH/train/<class>/*.jpg      PATH/val/<class>/*.jpg

with jpg, jpeg, png, bmp, webp, gif, tif, tiff or ppm files. Classes are numbered in the order of
their sorted names. A file that cannot be decoded does not stop a run: see
`vig_jax.data.bad_images`.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from vig_jax.config import DataConfig
from vig_jax.data.elpv import PIP_COMMAND, ElpvSource, find_folder
from vig_jax.data.example import Example
from vig_jax.data.fashion_mnist import FashionMnistSource

Split = Literal["train", "eval"]

_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm"})
_FOLDERS: dict[Split, str] = {"train": "train", "eval": "val"}
_SIZED_FILES = 1000  # of a folder, in its fingerprint
_LAYOUT = """
The expected layout is

    {path}/
      train/
        cat/  001.jpg  002.jpg  ...
        dog/  ...
      val/
        cat/  ...
        dog/  ...

To run without any data of your own: `make demo`, or --config=configs/fashion_mnist.py."""


class DataSetError(ValueError):
    """The data set is not there, not as it should be, or cannot be loaded in the way asked for."""


@runtime_checkable
class Source(Protocol):
    """A data set split with random access; picklable, and small when pickled."""

    @property
    def num_classes(self) -> int:
        """How many labels there are."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def name_of(self, index: int) -> str:
        """Where example `index` comes from, for messages: a relative path, or like one."""

    def fingerprint(self) -> str:
        """Digest of what the split holds; the same on every machine, wherever the data lies."""


def open_source(data: DataConfig, split: Split) -> Source:
    """Opens one split of the data set that a configuration names.

    Args:
        data: `source` and `path` say which; `image_size` is for "synthetic".
        split: "train" or "eval".

    Returns:
        The source.

    Raises:
        DataSetError: unknown name, or a folder that is missing, empty or not laid out as expected.
    """
    if data.source not in SOURCES:
        near = difflib.get_close_matches(data.source, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {sorted(SOURCES)}"
        raise DataSetError(f"config.data.source={data.source!r} is not a data set; {hint}")
    return SOURCES[data.source](data, split)


class SyntheticSource:
    """Noise and arbitrary labels, for measuring speed: the same for the same index, always.

    Args:
        side: of the square images, pixels.
        length: how many examples.
        num_classes: labels go round, 0 to num_classes - 1.
    """

    def __init__(self, side: int, length: int, num_classes: int = 1000):
        self._side = side
        self._length = length
        self.num_classes = num_classes
        self.class_names = tuple(f"class {label}" for label in range(num_classes))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        noise = np.random.Generator(np.random.Philox(key=index)).bytes(self._side**2 * 3)
        image = np.frombuffer(noise, np.uint8).reshape(self._side, self._side, 3)
        return {"image": image, "label": index % self.num_classes}

    def name_of(self, index: int) -> str:
        """A made-up path."""
        return f"synthetic/{index}"

    def fingerprint(self) -> str:
        """Digest of the sizes."""
        sizes = f"synthetic {self._side} {self._length} {self.num_classes}"
        return hashlib.sha256(sizes.encode()).hexdigest()


class ImageFolderSource:
    """Images in `root/folder/<class>/`, in the order of class and path.

    A list of a million paths is heavy to copy to every worker, so paths are kept as one string of
    bytes and an array of ends.

    Args:
        root: the folder above `train` and `val`.
        folder: the split's folder in it.
        class_names: the classes, sorted; a class without images is allowed here.
    """

    def __init__(self, root: Path, folder: str, class_names: tuple[str, ...]):
        self._base = os.fspath(root.absolute() / folder)
        self._folder = folder
        self.class_names = class_names
        names: list[bytes] = []
        counts: list[int] = []
        for class_name in class_names:
            found = sorted(_image_files(f"{self._base}/{class_name}"))
            names += [os.fsencode(name) for name in found]
            counts.append(len(found))
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @property
    def num_classes(self) -> int:
        """How many class folders."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        path = Path(self._base, self._path_in_folder(index))
        return {"image": path.read_bytes(), "label": int(self._labels[index])}

    def counts(self) -> np.ndarray:
        """Images per class."""
        return np.bincount(self._labels, minlength=self.num_classes)

    def name_of(self, index: int) -> str:
        """Path below the root, e.g. "train/cat/001.jpg"."""
        return f"{self._folder}/{self._path_in_folder(index)}"

    def fingerprint(self) -> str:
        """Digest of all names and labels, and of up to a thousand file sizes.

        Asking for the size of every file would take minutes on a network disk.
        """
        digest = hashlib.sha256(
            "\0".join(("image_folder", self._folder, *self.class_names)).encode(
                errors="surrogateescape"
            )
        )
        for part in (self._names, self._ends.astype("<i8"), self._labels.astype("<i4")):
            digest.update(bytes(part))
        for index in np.unique(np.linspace(0, len(self) - 1, _SIZED_FILES).astype(int)):
            size = Path(self._base, self._path_in_folder(int(index))).stat().st_size
            digest.update(size.to_bytes(8, "little"))
        return digest.hexdigest()

    def _path_in_folder(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return f"{self.class_names[self._labels[index]]}/{name}"


def _open_image_folder(data: DataConfig, split: Split) -> Source:
    layout = _LAYOUT.format(path=data.path or "PATH")
    if data.path is None:
        raise DataSetError(f"config.data.path is not set: where is your folder of images? {layout}")
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise DataSetError(f"config.data.path={data.path} is not a folder. {layout}")
    folder = _FOLDERS[split]
    if not (root / folder).is_dir():
        here = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:10]
        raise DataSetError(
            f"{root} has no folder {folder!r}; it has {', '.join(here) or 'no folders'}. {layout}"
        )
    class_names = _class_folders(root / folder)
    if not class_names:
        loose = sum(1 for _ in _image_files(os.fspath(root / folder)))
        found = f"{loose} images, but no class folders" if loose else "no class folders"
        raise DataSetError(f"{root / folder} holds {found}. {layout}")
    if split == "eval" and (root / "train").is_dir():
        _check_same_classes(_class_folders(root / "train"), class_names, layout)
    source = ImageFolderSource(root, folder, class_names)
    if len(source) == 0:
        raise DataSetError(
            f"{root / folder} has {len(class_names)} class folders, but no images in them "
            f"(looked for {', '.join(sorted(_EXTENSIONS))}). {layout}"
        )
    if split == "train" and not source.counts().all():
        empty = [
            name for name, count in zip(class_names, source.counts(), strict=True) if not count
        ]
        raise DataSetError(
            f"{len(empty)} class folders of {root / folder} hold no images: {_few(empty)}. "
            f"Fill them or remove them. {layout}"
        )
    return source


def _check_same_classes(train: tuple[str, ...], val: tuple[str, ...], layout: str) -> None:
    if train == val:
        return
    unknown, lacking = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    problems = []
    if unknown:
        problems.append(f"val has {len(unknown)} classes that train has not: {_few(unknown)}")
    if lacking:
        problems.append(
            f"val lacks {len(lacking)} classes of train: {_few(lacking)} "
            "(an empty folder will do, if they have no images)"
        )
    raise DataSetError(f"the classes of train and val differ. {'; '.join(problems)}. {layout}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _class_folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def is_image(name: str) -> bool:
    """Whether a file's extension says that it is an image."""
    return name.rpartition(".")[2].lower() in _EXTENSIONS


def _image_files(folder: str, prefix: str = "") -> Iterator[str]:
    """Paths below `folder` of all files with an image's extension, in no particular order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # links could go round in circles
                yield from _image_files(entry.path, f"{prefix}{entry.name}/")
            elif is_image(entry.name):
                yield prefix + entry.name


def _open_synthetic(data: DataConfig, split: Split) -> Source:
    return SyntheticSource(data.image_size, 65_536 if split == "train" else 4_096)


def _open_elpv(data: DataConfig, split: Split) -> Source:
    folder = find_folder()
    if folder is None:
        raise DataSetError(
            "config.data.source='elpv' reads the photographs of the package elpv-dataset, which is "
            f"not installed: {PIP_COMMAND} (91 MB; CC-BY-NC-SA 4.0, so not for commercial use)"
        )
    return ElpvSource(folder, split)


SOURCES: dict[str, Callable[[DataConfig, Split], Source]] = {
    "elpv": _open_elpv,
    "fashion_mnist": lambda data, split: FashionMnistSource(split),
    "image_folder": _open_image_folder,
    "synthetic": _open_synthetic,
}
