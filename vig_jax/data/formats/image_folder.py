"""A folder of images, one folder per class.

    PATH/train/<class>/*.jpg      PATH/val/<class>/*.jpg

with jpg, jpeg, png, bmp, webp, gif, tif, tiff, ppm, pgm, pbm or pnm files. Folders inside a class
folder are read too, also those behind links; hidden files and folders are not. Without train and
val folders (and with config.data.split="stratified") the files are PATH/<class>/*.jpg.

Classes are numbered in the order of their sorted names, or, if `vig data convert` has written the
folder, in the order of its `info.json`.
"""

import collections
import concurrent.futures
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from vig_jax.data.dataset import (
    ClassificationBase,
    ClassificationDataset,
    Example,
    Part,
    check_classes_filled,
)
from vig_jax.data.formats.shards import read_info
from vig_jax.data.preprocess.decode import read_size
from vig_jax.errors import DataSetError
from vig_jax.files import read_regular_file
from vig_jax.text import preview_names, printable

logger = logging.getLogger(__name__)

_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
)
# Formats of images that Pillow is not asked to read, or extensions that are rare.
_UNREADABLE = frozenset(
    {"jfif", "jpe", "avif", "heic", "heif", "jxl", "jp2", "j2k", "svg", "eps"}
    | {"psd", "dng", "cr2", "nef", "arw", "tga", "ico", "exr", "hdr", "apng", "pam", "pfm"}
)
_FOLDERS: dict[Part, str] = {"train": "train", "eval": "val"}
_SIZED_FILES = 1000  # of a folder, in its fingerprint
_SHARDS = {".arrayrecord": "array_record", ".parquet": "parquet", ".tar": "tar"}
_LAYOUT = """
The expected layout is

    {path}/
      train/
        cat/  001.jpg  002.jpg  ...
        dog/  ...
      val/
        cat/  ...
        dog/  ...

A folder of class folders without train and val: --config.data.split=stratified.
To run without data of your own: `make demo`, or --config=configs/fashion_mnist.py."""


class ImageFolderDataset(ClassificationBase):
    """Images in `root/folder/<class>/`, in the order of class and path.

    A list of a million paths is slow to copy to every worker, so the paths are stored as one string
    of bytes and an array of ends.

    Args:
        root: the folder above `train` and `val`.
        folder: the split's folder in it; "" for `root` itself.
        class_names: the class folders, by label; a class without images is allowed here.
    """

    def __init__(self, root: Path, folder: str, class_names: tuple[str, ...]):
        super().__init__(str(root / folder), class_names)
        self._base = os.fspath(root.absolute() / folder)
        self._folder = folder
        names: list[bytes] = []
        counts: list[int] = []
        ignored: collections.Counter[str] = collections.Counter()
        for class_name in class_names:
            found = sorted(_image_files(f"{self._base}/{class_name}", ignored))
            names += [os.fsencode(name) for name in found]
            counts.append(len(found))
        if ignored:
            logger.warning("%s: %s", printable(str(root / folder)), _describe_ignored(ignored))
        self._names = b"".join(names)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._sizes: Int32[np.ndarray, "n 2"] | None = None
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def __getitem__(self, index: int) -> Example:
        self.check_index(index)
        image = read_regular_file(f"{self._base}/{self._path_in_folder(index)}")
        return {"image": image, "label": int(self._labels[index])}

    def name_of(self, index: int) -> str:
        """Returns the path below the root, e.g. "train/cat/001.jpg"."""
        return printable(f"{self._folder}/{self._path_in_folder(index)}".removeprefix("/"))

    def digest(self) -> str:
        """Hashes all names and labels, and up to a thousand file sizes.

        To ask for the size of every file would take minutes on a network disk.
        """
        digest = hashlib.sha256(
            "\0".join(("image_folder", self._folder, *self.class_names)).encode(
                errors="surrogateescape"
            )
        )
        for part in (self._names, self._ends.astype("<i8"), self._labels.astype("<i4")):
            digest.update(bytes(part))
        for index in np.unique(np.linspace(0, len(self) - 1, _SIZED_FILES).astype(int)):
            file = Path(self._base, self._path_in_folder(int(index)))
            try:
                size = file.stat().st_size
            except OSError:  # e.g. a link to nothing: reading it makes a bad image
                size = 2**64 - 1
            digest.update(size.to_bytes(8, "little"))
        return digest.hexdigest()

    def known_sizes(self) -> Int32[np.ndarray, "n 2"]:
        """Returns width and height of every image, from the headers; 1 and 1 without a header."""
        if self._sizes is None:
            paths = (f"{self._base}/{self._path_in_folder(i)}" for i in range(len(self)))
            with concurrent.futures.ThreadPoolExecutor() as pool:
                found = [size or (1, 1) for size in pool.map(read_size, paths)]
            self._sizes = np.array(found, np.int32).reshape(-1, 2)
        return self._sizes

    def _path_in_folder(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]])
        return f"{self.class_names[self._labels[index]]}/{name}"


def open_image_folder(path: str | None, part: Part) -> ClassificationDataset:
    """Opens a split, or all of a folder without splits.

    Args:
        path: the folder.
        part: the split.

    Raises:
        DataSetError: the folder is missing, empty or of another layout.
    """
    layout = _LAYOUT.format(path=path or "PATH")
    if path is None:
        raise DataSetError(f"config.data.path is not set: where is your folder of images? {layout}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataSetError(f"config.data.path={path} is not a folder. {layout}")
    folder = _undivided(root) if part == "all" else _FOLDERS[part]
    if not (root / folder).is_dir():
        here = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:10]
        raise DataSetError(
            f"{root} has no folder {folder!r}; it has {', '.join(here) or 'no folders'}"
            f"{_shards_instead(root)}. {layout}"
        )
    class_names = _class_folders(root / folder)
    if not class_names:
        loose = len(find_image_files(root / folder))
        found = f"{loose} images, but no class folders" if loose else "no class folders"
        raise DataSetError(f"{root / folder} has {found}{_shards_instead(root)}. {layout}")
    if part == "eval" and (root / "train").is_dir():
        _check_same_classes(_class_folders(root / "train"), class_names, layout)
    dataset = ImageFolderDataset(root, folder, _in_order(root, class_names))
    if len(dataset) == 0:
        raise DataSetError(
            f"{root / folder} has {len(class_names)} class folders, but no images in them "
            f"(looked for {', '.join(sorted(_EXTENSIONS))}). {layout}"
        )
    if part != "eval":
        counts = np.bincount(dataset.labels(), minlength=dataset.num_classes)
        check_classes_filled(counts, dataset.class_names, root / folder, hint=f" {layout}")
    return dataset


def _shards_instead(root: Path) -> str:
    """Suggests the right setting if the files of the folder are shards."""
    for suffix, source in _SHARDS.items():
        if any(next(root.glob(f"{place}*{suffix}"), None) for place in ("", "train/", "data/")):
            return f"; for the {suffix} files in it: --config.data.source={source}"
    return ""


def _undivided(root: Path) -> str:
    """Returns the folder of the class folders: "train" if it holds class folders, else ""."""
    if not _is_split(root / "train"):
        return ""
    if _is_split(root / "val"):
        raise DataSetError(
            f"{root} has a folder val already: leave config.data.split at 'given', "
            "or set config.data.path to a folder of class folders"
        )
    return "train"


def _is_split(folder: Path) -> bool:
    """Tests for a folder of class folders. A folder of images may be a class called "train"."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        kinds = {_is_dir(e) for e in entries if _is_dir(e) or is_image(e.name)}
    return kinds == {True}


def _in_order(root: Path, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the class folders by label, as a conversion has recorded them."""
    info = read_info(root)
    if info is None or info.get("layout") != "image_folder":
        return class_names
    recorded = tuple(info["class_folders"])
    if set(recorded) != set(class_names):
        raise DataSetError(
            f"the class folders in {root} are not those of its info.json "
            f"({len(class_names)} and {len(recorded)}): remove info.json to number the classes by "
            "their sorted names"
        )
    return recorded


def _check_same_classes(train: tuple[str, ...], val: tuple[str, ...], layout: str) -> None:
    if train == val:
        return
    unknown, lacking = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    problems = []
    if unknown:
        problems.append(
            f"val has {len(unknown)} classes that are missing from train: {preview_names(unknown)}"
        )
    if lacking:
        problems.append(
            f"train has {len(lacking)} classes that are missing from val: {preview_names(lacking)} "
            "(an empty folder is enough for a class without images)"
        )
    raise DataSetError(f"the classes of train and val differ. {'; '.join(problems)}. {layout}")


def _class_folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if _is_dir(e) and not is_hidden(e.name)))


def is_image(name: str) -> bool:
    """Returns whether a file has the extension of an image."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem and dot) and extension.lower() in _EXTENSIONS


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is none of the user's: hidden, or metadata of a Mac."""
    return name.startswith(".") or name == "__MACOSX"


def find_image_files(folder: Path) -> list[str]:
    """Returns the paths of all image files below a folder, relative to it and sorted.

    Links to folders are followed, except in circles. Hidden files and folders are left out.
    Files of image formats that cannot be read are reported.
    """
    ignored: collections.Counter[str] = collections.Counter()
    found = sorted(_image_files(os.fspath(folder), ignored))
    if ignored:
        logger.warning("%s: %s", printable(str(folder)), _describe_ignored(ignored))
    return found


def _describe_ignored(ignored: "collections.Counter[str]") -> str:
    ordered = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{count} .{extension}" for extension, count in ordered)
    return (
        f"{ignored.total()} files are ignored for their extension ({kinds}): rename .jfif files to "
        ".jpg, and convert files of other formats to JPEG or PNG"
    )


def _image_files(
    folder: str,
    ignored: "collections.Counter[str]",
    prefix: str = "",
    entered: tuple[str, ...] = (),
) -> Iterator[str]:
    """Yields the paths below `folder` of all image files, in no particular order.

    Args:
        folder: to search.
        ignored: files of formats that cannot be read are counted here, by extension.
        prefix: put before every path.
        entered: the real paths of the folders whose links led here.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_dir(entry):
                above = entered
                if entry.is_symlink():
                    above = (*entered, os.path.realpath(folder))
                    target = os.path.realpath(entry.path)
                    if any(f"{path}/".startswith(f"{target}/") for path in above):
                        logger.warning("%s leads back to itself: not followed", entry.path)
                        continue
                yield from _image_files(entry.path, ignored, f"{prefix}{entry.name}/", above)
            elif is_image(entry.name):
                yield prefix + entry.name
            elif (extension := entry.name.rpartition(".")[2].lower()) in _UNREADABLE:
                ignored[extension] += 1


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    """Returns whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
