"""Locks of folders; `tests/data` has the tests of atomic writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vig_jax.errors import FolderInUseError
from vig_jax.files import folder_lock

OWNER = """
import pathlib, sys, time
from vig_jax.files import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), "--workdir"):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_until_it_dies(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "locked\n"
    message = f"in use by process {owner.pid} on .*, started 20.*--workdir"
    with pytest.raises(FolderInUseError, match=message), folder_lock(tmp_path, "--workdir"):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with folder_lock(tmp_path, "--workdir"):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    with folder_lock(tmp_path, "--workdir"):  # again, after it was released
        pass
