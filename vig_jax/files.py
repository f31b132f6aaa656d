"""Files: written completely or not at all, and their digests."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vig_jax.errors import FolderInUseError


@contextlib.contextmanager
def write_atomically(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yields a draft path and renames the draft to `path` when the block ends without an error.

    A process that is killed leaves the old file or the new one, never a part. After an error the
    draft is removed. The draft of a killed process is overwritten by the next attempt.

    Args:
        path: the file or folder to write. An existing one is replaced.
        concurrent: several processes may write the file at the same time, so each needs another
            draft.

    Yields:
        A path in the same folder, which keeps the suffix.
    """
    path = path.absolute()
    tag = f".{os.getpid()}" if concurrent else ""
    draft = path.with_name(f".{path.stem}{tag}.tmp{path.suffix}")
    old = path.with_name(f".{path.stem}{tag}.old{path.suffix}")
    try:
        yield draft
        if path.is_dir() and draft.is_dir():  # a folder cannot be replaced in one step
            path.rename(old)
        draft.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (draft, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def folder_lock(folder: Path, option: str) -> Iterator[None]:
    """Makes this process the only one of ours that writes into a folder.

    The lock ends with the process, however it ends. The file `.lock` names the owner.

    Args:
        folder: an existing folder.
        option: names another folder, for the message, e.g. "--workdir".

    Raises:
        FolderInUseError: names the process that owns the folder.
    """
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUseError(
                f"{folder} is in use by {file.read().strip() or 'another process'}: wait until it "
                f"has ended, stop it, or choose another folder with {option}"
            ) from None
        except OSError:  # the file system has no locks
            yield
            return
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        file.flush()
        yield
        file.truncate(0)
