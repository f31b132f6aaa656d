"""One owner of a folder: on this machine, and on others that share the disk."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vig_jax import folder_lock as module
from vig_jax.errors import FolderInUseError
from vig_jax.folder_lock import folder_lock

OWNER = """
import pathlib, sys, time
from vig_jax.folder_lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), "--workdir"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def soon(monkeypatch):
    """Makes the waiting times short."""
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.1)
    monkeypatch.setattr(module, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(module, "_WRITE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_SETTLE_SECONDS", {True: 0.0, False: 0.1})


def locks(folder):
    with folder_lock(folder, "--workdir"):
        pass


def elsewhere(folder):
    """Writes the lock of a process on another machine."""
    owner = dataclasses.replace(module._Owner.this(), key="other", machine="other", host="far")
    module._create(folder / ".lock", owner)
    return owner


def test_a_folder_has_one_owner_until_it_dies(tmp_path, caplog):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "locked\n"
    message = f"in use by process {owner.pid} on .*, started 20.*--workdir"
    with pytest.raises(FolderInUseError, match=message):
        locks(tmp_path)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with folder_lock(tmp_path, "--workdir"):
        assert f'"process": {os.getpid()},' in (tmp_path / ".lock").read_text()
    assert f"taking over the lock of {tmp_path} from process {owner.pid} on" in caplog.text
    locks(tmp_path)  # again, after it was released
    assert not list(tmp_path.iterdir())


def test_an_owner_that_cannot_be_seen_must_show_that_it_lives(tmp_path, soon, caplog):
    elsewhere(tmp_path)
    touched = threading.Timer(0.3, os.utime, [tmp_path / ".lock"])
    touched.start()
    with pytest.raises(FolderInUseError, match=r"in use by process .* on far"):
        locks(tmp_path)
    touched.join()
    assert "taking over" not in caplog.text
    locks(tmp_path)  # it is silent now
    assert "waiting for a sign of its life" in caplog.text
    assert f"taking over the lock of {tmp_path} from process" in caplog.text


def test_a_process_that_was_suspended_has_lost_its_lock(tmp_path, soon):
    with folder_lock(tmp_path, "--workdir") as lock:
        before = (tmp_path / ".lock").stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / ".lock").stat().st_mtime_ns > before
        lock.check()
        (tmp_path / ".lock").unlink()
        elsewhere(tmp_path)
        with pytest.raises(FolderInUseError, match=r"taken over by process .* on far"):
            lock.check()
    assert module._read(tmp_path / ".lock")[0].host == "far"  # leaves the lock of the other


@pytest.mark.parametrize("content", ["", "process 1 on far, started 2026-01-01 00:00:00\n", "{}"])
def test_a_file_that_names_no_owner_is_replaced(tmp_path, soon, content, caplog):
    (tmp_path / ".lock").write_text(content)
    locks(tmp_path)
    assert f"taking over the lock of {tmp_path} from a process" in caplog.text


def test_a_number_of_a_process_that_is_used_again_is_another_process(tmp_path, soon):
    owner = dataclasses.replace(module._Owner.this(), key="other", born="1")
    module._create(tmp_path / ".lock", owner)
    locks(tmp_path)


def test_one_of_many_gets_the_lock(tmp_path, soon, monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_SECONDS", {True: 0.2, False: 0.2})
    module._create(tmp_path / ".lock", dataclasses.replace(module._Owner.this(), born="1"))
    inside, refused = [], []

    def enter():
        try:
            with folder_lock(tmp_path, "--workdir"):
                inside.append(1)
                time.sleep(0.6)
        except FolderInUseError:
            refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 5)
