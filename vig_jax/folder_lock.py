"""A lock on a folder that holds across hosts, also where the file system has no locks (some NFS).

The file `.lock` names its owner, who touches it every few seconds. A lock whose owner has ended on
this machine is taken over at once. The life of a process on another machine shows only in the file:
it counts as ended when nobody has touched the lock for a minute. The clocks of hosts are never
compared.
"""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vig_jax.errors import FolderInUseError

_LOG = logging.getLogger("vig_jax")

TOUCH_SECONDS = 10.0
"""The time between two signs of life of an owner."""
STALE_SECONDS = 60.0
"""After this time without a sign of life, the owner on another machine counts as ended."""
_WRITE_SECONDS = 2.0  # in which a new owner writes its name into the file
# Two processes may take over at once. The last one remains, after this time, here and elsewhere.
_SETTLE_SECONDS = {True: 0.2, False: 2.0}


@dataclasses.dataclass(frozen=True)
class _Owner:
    """A process that owns a lock.

    Attributes:
        key: random, of one lock.
        host: name of the machine.
        process: number of the process.
        started: when it took the lock, for the reader.
        machine: identifies the machine since its start, and the container; another process of the
            same machine can see whether the owner lives.
        born: when the process began, in the kernel's units: numbers of processes are used again.
    """

    key: str
    host: str
    process: int
    started: str
    machine: str
    born: str | None

    @classmethod
    def this(cls) -> "_Owner":
        return cls(
            key=uuid.uuid4().hex,
            host=socket.gethostname(),
            process=os.getpid(),
            started=time.strftime("%Y-%m-%d %H:%M:%S"),
            machine=_machine(),
            born=_born(os.getpid()),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {self.started}"

    def is_here(self) -> bool:
        return self.machine == _machine()

    def has_ended(self) -> bool:
        """Returns whether an owner on this machine has ended."""
        return _born(self.process) != self.born


class FolderLock:
    """The lock that `folder_lock` yields."""

    def __init__(self, folder: Path, owner: _Owner) -> None:
        self._folder, self._owner = folder, owner

    def check(self) -> None:
        """Checks that the lock is still ours; a process that is suspended for a minute loses it.

        Raises:
            FolderInUseError: names the process that has taken the folder over.
        """
        other, _ = _read(self._folder / ".lock")
        if other is not None and other.key != self._owner.key:
            raise FolderInUseError(
                f"{self._folder} was taken over by {other}, because this process gave no sign of "
                f"life for {STALE_SECONDS:.0f} seconds: leave the folder to that process"
            )


@contextlib.contextmanager
def folder_lock(folder: Path, option: str) -> Iterator[FolderLock]:
    """Makes this process the only one of ours, on all hosts, that writes into a folder.

    Waits up to `STALE_SECONDS` if the owner was on another machine and may have ended.

    Args:
        folder: an existing folder.
        option: names another folder, for the message, e.g. "--workdir".

    Raises:
        FolderInUseError: names the process that owns the folder.
    """
    file, owner = folder / ".lock", _Owner.this()
    while not _create(file, owner):
        former = _wait_for_end(folder, option)
        if former is _GONE:
            continue
        draft = file.with_name(f".lock.{owner.key}")
        _create(draft, owner)
        if _read(file)[0] != former:  # another process was faster
            draft.unlink()
            continue
        draft.replace(file)
        time.sleep(_SETTLE_SECONDS[former is not None and former.is_here()])
        now, _ = _read(file)
        if now is not None and now.key == owner.key:
            _LOG.warning("taking over the lock of %s from %s", folder, former or "a process")
            break
    released = threading.Event()
    toucher = threading.Thread(target=_touch, args=(file, owner, released), daemon=True)
    toucher.start()
    try:
        yield FolderLock(folder, owner)
    finally:
        released.set()
        toucher.join()
        now, _ = _read(file)
        if now is not None and now.key == owner.key:
            file.unlink(missing_ok=True)


_GONE = _Owner("", "", 0, "", "", None)  # the lock has been released


def _wait_for_end(folder: Path, option: str) -> _Owner | None:
    """Returns the owner that has ended, None if the lock names none, or `_GONE`.

    Raises:
        FolderInUseError: the owner lives.
    """
    first, begun = _read(folder / ".lock"), time.monotonic()
    if first[0] is not None and not first[0].is_here():
        _LOG.warning("%s is in use by %s: waiting for a sign of its life", folder, first[0])
    while True:
        owner, touched = seen = _read(folder / ".lock")
        if touched == 0:
            return _GONE
        here = owner is not None and owner.is_here()
        if owner is not None and here and owner.has_ended():
            return owner
        if here or (owner is not None and seen != first):
            raise FolderInUseError(
                f"{folder} is in use by {owner}: wait until it has ended, stop it, or choose "
                f"another folder with {option}"
            )
        if time.monotonic() - begun > (STALE_SECONDS if owner else _WRITE_SECONDS):
            return owner
        time.sleep(0.2)


def _touch(file: Path, owner: _Owner, released: threading.Event) -> None:
    """Touches the lock until it is released or has another owner."""
    while not released.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):  # a server may be away for a while
            now, _ = _read(file)
            if now is not None and now.key != owner.key:
                _LOG.error("the lock %s was taken over by %s", file, now)
                return
            if now is not None:
                os.utime(file)


def _create(file: Path, owner: _Owner) -> bool:
    """Writes a new lock; returns False if there is one."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(handle, "w", encoding="utf-8") as opened:  # noqa: PTH123
        json.dump(dataclasses.asdict(owner), opened)
        opened.flush()
        os.fsync(handle)
    return True


def _read(file: Path) -> tuple[_Owner | None, int]:
    """Returns a lock's owner and when it was touched, in nanoseconds of the file server's clock.

    The owner is None if the file is not ours or is being written; the time is 0 without a file.
    """
    try:
        with file.open(encoding="utf-8") as opened:  # a look without opening may be an old one
            touched = os.fstat(opened.fileno()).st_mtime_ns
            return _Owner(**json.load(opened)), touched
    except FileNotFoundError:
        return None, 0
    except (ValueError, TypeError):
        return None, touched


def _machine() -> str:
    """Returns what identifies this machine since its start, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _born(process: int) -> str | None:
    """Returns when a process of this machine began; None if it has ended."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return None
        try:  # not Linux
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    fields = status.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else fields[19]
