"""The previous interface of `core.triton`, in which kernels pass `interpreting` along."""

import functools
from collections.abc import Callable
from typing import Any

from kernels_pallas.core import triton
from kernels_pallas.core.integers import next_power_of_two as power_of_two  # noqa: F401
from kernels_pallas.core.launch import MAX_PROGRAMS, is_interpreting  # noqa: F401
from kernels_pallas.core.triton import (  # noqa: F401
    LOG2_E,
    MAX_ROWS,
    both,
    divide,
    program_id,
    when,
)


def triton_call(kernel: Callable[..., None], **options: Any) -> Callable[..., Any]:
    """Calls `core.triton.triton_call` for a kernel that takes `interpreting`."""
    kernel = functools.partial(kernel, interpreting=is_interpreting())
    return triton.triton_call(kernel, **options)


def _ignoring_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, interpreting: bool) -> Any:
        return function(*arguments)

    return call


load = _ignoring_mode(triton.load)
store = _ignoring_mode(triton.store)
barrier = _ignoring_mode(triton.barrier)
exp2 = _ignoring_mode(triton.exp2)
log2 = _ignoring_mode(triton.log2)
reciprocal = _ignoring_mode(triton.reciprocal)
sigmoid = _ignoring_mode(triton.sigmoid)
widen = _ignoring_mode(triton.widen)
