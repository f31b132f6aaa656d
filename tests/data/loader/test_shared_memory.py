import time

import pytest
from grain.multiprocessing import SharedMemoryArray

from vig_jax.data.loader import shared_memory
from vig_jax.data.loader.shared_memory import SHARED_MEMORY, wait_until_released


@pytest.mark.parametrize("count", [1, 30, 120])  # Grain queues up to 50
def test_dropped_arrays_are_released_after_the_wait(count):
    SharedMemoryArray.enable_async_del(1)  # as Grain does when it starts a worker
    arrays = [SharedMemoryArray((100, 100)) for _ in range(count)]
    files = [SHARED_MEMORY / array.metadata.name for array in arrays]
    assert all(file.exists() for file in files)
    for array in arrays:
        array.unlink_on_del()
    del array
    arrays.clear()
    begun = time.monotonic()
    wait_until_released()
    assert not any(file.exists() for file in files)
    assert time.monotonic() - begun < 1


def test_entries_of_a_process_that_lives_stay(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    shared_memory.own_prefix.cache_clear()
    mine = tmp_path / f"{shared_memory.own_prefix()}0123"
    mine.touch()
    others = [tmp_path / "psm_0123", tmp_path / "vig_jax_report"]
    stale = tmp_path / "vig_jax_00000000_0123"
    (tmp_path / "vig_jax_00000001.lock").touch()
    for file in (*others, stale):
        file.write_bytes(bytes(2**20))
    (tmp_path / "vig_jax_00000001_watch_x").mkdir()
    shared_memory.remove_stale()
    left = {mine, *others, mine.with_name(f"{mine.name[:16]}.lock")}
    assert set(tmp_path.iterdir()) == left
    assert "removed 3 entries" in caplog.text
    assert "4 entries of 2 MiB are in it, the largest vig_jax_report (1 MiB)" in (
        shared_memory.describe()
    )
    shared_memory.own_prefix.cache_clear()
