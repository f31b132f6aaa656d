import time

import pytest
from grain.multiprocessing import SharedMemoryArray

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
