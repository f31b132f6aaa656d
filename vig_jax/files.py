"""Files: written completely or not at all, and their digests."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vig_jax.errors import ConfigError, UnreadableRecordError
from vig_jax.text import is_utf8, printable

LARGEST_IMAGE_FILE = 2**29
"""Bytes that an image file may have."""


@contextlib.contextmanager
def write_atomically(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yields a draft path and renames the draft to `path` when the block ends without an error.

    A process that is killed leaves the old file or the new one, never a part. After an error the
    draft is removed. The draft of a killed process is overwritten by the next attempt. The draft is
    in a folder that only this user can open, so nobody can plant a link in its place.

    Args:
        path: the file or folder to write. An existing one is replaced.
        concurrent: several processes may write the file at the same time, so each needs another
            draft.

    Yields:
        A path on the same disk, with the same name.
    """
    path = path.absolute()
    tag = f".{os.getpid()}" if concurrent else ""
    private = path.with_name(f".{path.name}{tag}.tmp")
    _remove(private)
    private.mkdir(mode=0o700)
    draft, old = private / path.name, private / f"{path.name}.old"
    try:
        yield draft
        if path.is_dir() and not path.is_symlink() and draft.is_dir():
            path.rename(old)  # a folder cannot be replaced in one step
        draft.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(private)


def check_utf8(path: Path, library: str) -> None:
    """Checks a path for a library that takes only UTF-8.

    Args:
        path: relative or absolute.
        library: reads or writes there.

    Raises:
        ConfigError: the absolute path is not UTF-8.
    """
    if not is_utf8(str(path.absolute())):
        raise ConfigError(
            f"{printable(str(path.absolute()))} is not UTF-8, and {library} takes no other paths: "
            "rename the folder"
        )


def _remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_regular_file(path: str | Path, limit: int = LARGEST_IMAGE_FILE) -> bytes:
    """Returns the contents of a file; never waits for a pipe or reads a device.

    Args:
        path: may be a link to a regular file.
        limit: bytes.

    Raises:
        UnreadableRecordError: the path is no regular file, or is larger than the limit.
        OSError: the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:  # noqa: PTH123
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableRecordError(
                "not a regular file: a pipe, a socket, a device or a folder"
            )
        if found.st_size > limit:
            raise UnreadableRecordError(
                f"{found.st_size} bytes are more than an image may have, {limit}"
            )
        return file.read(limit)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, atomically; see `to_json`."""
    write_text(path, to_json(value, indent=2))


def to_json(value: Any, indent: int | None = 1) -> str:
    """Returns JSON with a final line break; in one line if `indent` is None.

    Numbers that are NaN or infinite become null: JSON has no word for them, and many readers refuse
    Python's.
    """
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
