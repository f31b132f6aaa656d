"""Compiles the programs of a run side by side, before they are needed."""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vig_jax.tasks.protocol import BatchSpec
from vig_jax.train.programs import Programs

THREADS = 6
"""The most programs that are compiled at a time: each of a run has a thread."""


@contextlib.contextmanager
def compilation_threads() -> Iterator[Executor]:
    """Yields threads that compile. An error does not wait for them, but the end of Python does."""
    threads = ThreadPoolExecutor(THREADS, "compilation")
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


class CompiledAhead:
    """A jitted function whose program for known types of arguments another thread compiles."""

    def __init__(
        self,
        function: Any,
        arguments: tuple[Any, ...],
        threads: Executor,
        trace_in: Mesh | None = None,
    ) -> None:
        """Traces the function, unless a thread is to do that, and starts the compilation.

        Tracing and lowering hold Python's global lock. A program that is needed at once is best
        traced in the calling thread, before others compete for the lock.

        Args:
            function: the result of `jax.jit`.
            arguments: arrays or shapes.
            threads: one of them compiles.
            trace_in: the ambient mesh under which that thread also traces; None: the calling thread
                traces, under its own.
        """
        self._function = function
        self._types = [_types(argument) for argument in arguments]
        self._fits: bool | None = None  # the types of all arguments but the last
        self.out_info: Any = None  # that of `jax.stages.Traced`, if it is traced at once

        def trace_and_compile() -> Any:
            with jax.set_mesh(trace_in):
                return function.lower(*arguments).compile()

        if trace_in:
            self._program = threads.submit(trace_and_compile)
        else:
            traced = function.trace(*arguments)
            self.out_info = traced.out_info
            self._program = threads.submit(traced.lower().compile)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the program when it is compiled; for other types of arguments, the function.

        Only the last argument, the batch, may change its types between calls.
        """
        if self._fits is None:
            self._fits = [_types(x) for x in arguments[:-1]] == self._types[:-1]
        if self._fits and [_types(x) for x in arguments[-1:]] == self._types[-1:]:
            return self._program.result()(*arguments)
        return self._function(*arguments)


def compiled_ahead(
    function: Any, arguments: tuple[Any, ...], threads: Executor, trace_in: Mesh | None = None
) -> Any:
    """Returns a `CompiledAhead`, several for `Programs`, or a function that is not jitted as it is.

    `Programs` are traced at once.
    """
    if isinstance(function, Programs):

        def ahead(name: str, *types: Any) -> CompiledAhead:
            return CompiledAhead(function.programs[name], types, threads)

        return dataclasses.replace(function, programs=function.each(ahead, *arguments)[0])
    if not hasattr(function, "lower"):
        return function
    return CompiledAhead(function, arguments, threads, trace_in)


def batch_of(spec: BatchSpec, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the types of a batch from those of an example."""
    return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in dict(spec).items()}


def _types(tree: Any) -> tuple[Any, list[tuple[tuple[int, ...], np.dtype]]]:
    """Returns the structure of a tree, and the shape and dtype of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
