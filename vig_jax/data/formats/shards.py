"""Shared by data sets in shards: finding the files, class names, and `info.json` beside them.

The shards of a split are PATH/train-00000-of-00256.SUFFIX (or any name that begins with `train` or
contains `-train-`), or all files in PATH/train/, or files with such names in PATH/data/. Those for
evaluation have val, validation or test instead. PATH may also be a pattern such as
`/data/imagenet1k-{split}-*.tar`, in which `{split}` is replaced by those words.

The names of the classes, by label, come from PATH/info.json, which `vig data convert` writes, or
from PATH/classes.txt, one per line.
"""

import collections
import glob
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vig_jax.data.dataset import Part
from vig_jax.errors import DataSetError
from vig_jax.text import preview_names

INFO_FILE = "info.json"
CLASSES_FILE = "classes.txt"
FORMAT = "vig_jax data set, version 1"  # in info.json; absent in files of other tools

_WORDS: dict[Part, tuple[str, ...]] = {
    "train": ("train",),
    "eval": ("val", "validation", "test"),
    "all": ("train",),
}
_COMPARED = 16_384  # bytes at each end of a shard, to find copies
_NUMBERED = re.compile(r"(.*)-(\d{4,})-of-(\d{4,})(-[0-9a-f]+)?$")


def find_shards(path: str | None, part: Part, suffix: str) -> list[Path]:
    """Returns the files of a split, complete and in order.

    Args:
        path: a folder, a file or a pattern.
        part: the split; "all" means the training files if there are files of that name, else all.
        suffix: with its dot, e.g. ".tar".

    Returns:
        At least one path, sorted.

    Raises:
        DataSetError: the path, the files or a shard is missing, or the shards have two numberings.
    """
    if path is None:
        raise DataSetError(
            f"config.data.path is not set: set it to the folder of the {suffix} files"
        )
    found: list[Path] = []
    for word in _WORDS[part]:
        found = _files(path, word, suffix)
        if found:
            break
    if part == "all":
        if found and any(_files(path, word, suffix) for word in _WORDS["eval"]):
            raise DataSetError(
                f"{path} has files for evaluation already: "
                "leave config.data.split at 'given', or set config.data.path to one split"
            )
        found = found or _files(path, "", suffix)
    if not found:
        raise DataSetError(_nothing_found(path, part, suffix))
    _check_numbering(found)
    _check_copies(found)
    return found


def has_shards(path: str, part: Part, suffix: str) -> bool:
    """Returns whether there are files of a split."""
    return any(_files(path, word, suffix) for word in _WORDS[part])


def _files(path: str, word: str, suffix: str) -> list[Path]:
    """Returns the files of one split, or all if the word is empty; none that are hidden."""
    expanded = Path(path).expanduser()
    if not expanded.is_dir():
        if word and "{split}" not in path:
            return []
        pattern = str(expanded).replace("{split}", word or "*")
        return sorted(Path(name) for name in glob.glob(pattern) if name.endswith(suffix))  # noqa: PTH207
    here, in_data = _visible(expanded, suffix), _visible(expanded / "data", suffix)
    if not word:
        return here
    begins = re.compile(rf"(.*-)?{word}([-_.].*|\d*){re.escape(suffix)}")
    return (
        [file for file in here if begins.fullmatch(file.name)]
        or _visible(expanded / word, suffix)
        or [file for file in in_data if begins.fullmatch(file.name)]
    )


def _visible(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))


def _nothing_found(path: str, part: Part, suffix: str) -> str:
    folder = Path(path).expanduser()
    words = "" if part == "all" else " or ".join(f"{word}-*{suffix}" for word in _WORDS[part])
    if not folder.is_dir():
        if "{split}" in path or glob.has_magic(path) or folder.exists():
            hint = (
                ""
                if "{split}" in path or part == "all"
                else "; one file or a pattern without {split} needs config.data.split=stratified"
            )
            return f"config.data.path={path} has no {suffix} files for {part!r}{hint}"
        return f"config.data.path={path} does not exist"
    here = sorted(entry.name for entry in folder.iterdir())
    return (
        f"{path} has no {words or suffix + ' files'} (in the folder itself or in one named like "
        f"the split); it has {preview_names(here, limit=10) or 'nothing'}. For files that are not "
        "divided into train and val, set --config.data.split=stratified"
    )


def _check_numbering(files: Sequence[Path]) -> None:
    """Checks that names like train-00003-of-00008 form one complete set."""
    numbered: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    for file in files:
        if match := _NUMBERED.match(file.stem):
            numbered[match[1], int(match[3])].add(int(match[2]))
    totals: dict[str, set[int]] = collections.defaultdict(set)
    for name, total in numbered:
        totals[name].add(total)
    for name, several in totals.items():
        if len(several) > 1:
            raise DataSetError(
                f"{files[0].parent} has shards of more than one numbering, {name}-*-of-"
                f"{' and -of-'.join(str(n) for n in sorted(several))}: remove the older ones, or "
                "images may occur twice"
            )
    for (name, total), numbers in numbered.items():
        if missing := sorted(set(range(total)) - numbers):
            raise DataSetError(
                f"{len(missing)} of the {total} shards {name}-*-of-{total:05} are missing in "
                f"{files[0].parent}: number {preview_names(missing)}. Copy them, or convert "
                "again with --resume"
            )


def _check_copies(files: Sequence[Path]) -> None:
    """Raises DataSetError if a shard is there twice, under two names."""
    by_size: dict[int, list[Path]] = collections.defaultdict(list)
    for file in files:
        by_size[file.stat().st_size].append(file)
    for size, alike in by_size.items():
        if size == 0 or len(alike) == 1:  # empty files are reported by `check_sizes`
            continue
        seen: dict[bytes, Path] = {}
        for file in alike:
            with file.open("rb") as opened:
                ends = opened.read(_COMPARED)
                opened.seek(max(0, size - _COMPARED))
                ends += opened.read()
            if ends in seen:
                raise DataSetError(
                    f"{file} is a copy of {seen[ends]}, so each of its images would occur twice: "
                    "remove one of them"
                )
            seen[ends] = file


def home_of(files: Sequence[Path], path: str | None) -> Path:
    """Returns the folder where `info.json` and `classes.txt` of some shards are expected."""
    folder = Path(path or "").expanduser()
    return folder if folder.is_dir() else files[0].parent


def read_info(folder: Path) -> dict[str, Any] | None:
    """Returns the content of the `info.json` of `vig data convert`, or None if there is none.

    Raises:
        DataSetError: the file is damaged.
    """
    file = folder / INFO_FILE
    if not file.is_file():
        return None
    try:
        info = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataSetError(f"{file} cannot be read: {error}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        return None  # of another program
    _check_info(info, file)
    return info


def _check_info(info: dict[str, Any], file: Path) -> None:
    """Checks the types of what is read from `info.json`.

    Raises:
        DataSetError: something is missing or of another type.
    """
    names, splits = info.get("class_names"), info.get("splits")
    if not isinstance(names, list) or not _all_of(names, str) or not isinstance(splits, dict):
        raise DataSetError(f"{file} lacks class_names or splits: convert the data set again")
    kinds = {"name": str, "bytes": int, "sha256": str, "images": int}
    for name, split in splits.items():
        complete = (
            isinstance(split, dict)
            and isinstance(split.get("images"), int)
            and _all_of(split.get("class_counts"), int)
            and len(split["class_counts"]) == len(names)
            and _all_of(split.get("shards"), dict)
            and all(
                isinstance(shard.get(key), kind)
                for shard in split["shards"]
                for key, kind in kinds.items()
            )
        )
        if not complete:
            raise DataSetError(
                f"{file}: the split {name!r} lacks images, class_counts (one per class) or shards: "
                "convert the data set again"
            )
    if info.get("layout") == "image_folder" and not _all_of(info.get("class_folders"), str):
        raise DataSetError(f"{file} lacks class_folders: convert the data set again")


def _all_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def class_names_beside(folder: Path) -> tuple[str, ...] | None:
    """Returns the class names by label from the files beside the shards, or None without a file.

    Raises:
        DataSetError: a line is empty or a name occurs twice.
    """
    if (info := read_info(folder)) is not None:
        return tuple(info["class_names"])
    file = folder / CLASSES_FILE
    if not file.is_file():
        return None
    names = tuple(read_lines(file))
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice or not all(names):
        problem = f"{twice[0]!r} occurs twice" if twice else "a line is empty"
        raise DataSetError(f"{file}: {problem}; write one class name per line, by label")
    return names


def read_lines(file: Path) -> list[str]:
    """Returns the lines of a UTF-8 file, without a byte order mark."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataSetError(f"{file} is not UTF-8 ({error}): save it as UTF-8") from error
    return text.rstrip("\n").split("\n")


def no_class_names(folder: Path) -> DataSetError:
    """Returns the error for labels without names."""
    return DataSetError(
        f"the labels in {folder} are numbers, and nothing names the classes: write "
        f"{folder / CLASSES_FILE}, one name per line, the first for label 0 (`seq 0 999 > "
        f"{folder / CLASSES_FILE}` makes names of the numbers of a thousand classes)"
    )


def check_sizes(files: Sequence[Path], info: dict[str, Any] | None) -> None:
    """Compares the sizes of shards with those that their conversion recorded, if it did.

    Raises:
        DataSetError: a file is empty, truncated, longer, or not recorded.
    """
    recorded = {
        shard["name"]: shard["bytes"]
        for split in (info or {"splits": {}})["splits"].values()
        for shard in split["shards"]
    }
    for file in files:
        size = file.stat().st_size
        if size == 0:
            raise DataSetError(f"{file} is empty: copy it, or convert the data set again")
        if not recorded:
            continue
        if file.name not in recorded:
            raise DataSetError(f"{file} is not in {INFO_FILE}: does it belong to this data set?")
        if size != recorded[file.name]:
            state = "truncated" if size < recorded[file.name] else "changed"
            raise DataSetError(
                f"{file} is {state}: {size} bytes, {INFO_FILE} says {recorded[file.name]}. "
                "Copy it again, or convert the data set again"
            )


def shards_digest(
    kind: str, files: Sequence[Path], class_names: Sequence[str], info: dict[str, Any] | None
) -> "hashlib._Hash":
    """Starts a fingerprint with names, sizes, and the digests that the conversion recorded."""
    digest = hashlib.sha256("\0".join((kind, *class_names)).encode(errors="surrogateescape"))
    recorded = {
        shard["name"]: shard["sha256"]
        for split in (info or {"splits": {}})["splits"].values()
        for shard in split["shards"]
    }
    for file in files:
        line = f"\0{file.name}\0{file.stat().st_size}\0{recorded.get(file.name, '')}"
        digest.update(line.encode(errors="surrogateescape"))
    return digest
