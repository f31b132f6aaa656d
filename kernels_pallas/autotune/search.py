"""Times the configs of an operator's kernels."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import config as core_config
from ..core.derivatives import vjp_of_floats
from ..core.dispatch import Call, Implementation, best_first, observe
from ..core.launch import interpret, is_interpreting, target_device
from ..core.timing import candidate, interleaved

_LOG = logging.getLogger("kernels_pallas")
_INPUT_SETS = 2  # so that inputs are read from memory, and not from the cache
_SAMPLE_SECONDS = 0.01


def autotune(
    op: Callable[..., Any],
    *args: jax.Array,
    implementation: str | None = None,
    gradients: bool = False,
    store: bool = False,
    samples: int = 5,
    **kwargs: Any,
) -> Any:
    """Times the configs of a call's kernels on the GPU at hand and returns the fastest one.

    Example::

        config = kernels_pallas.autotune(kernels_pallas.swiglu, x, gradients=True)
        kernels_pallas.swiglu(x, implementation="pallas_triton", config=config)

    The forward kernel is chosen by the time of the forward pass. With `gradients`, the kernels of
    differentiated calls are then chosen by the time of both passes.

    Args:
        op: An operator of `kernels_pallas`.
        *args: Its arrays.
        implementation: The implementation to tune; None for the first one that has configs and can
            serve the call.
        gradients: Tunes the kernels of the backward pass as well.
        store: Stores the winner, so that calls of the same shape on such a GPU use it by default.
        samples: Samples of each time; the median counts.
        **kwargs: Further arguments of the operator.

    Returns:
        The config, which the operator accepts as `config=`.

    Raises:
        RuntimeError: There is nothing to tune on this machine; the message has the reasons.
    """
    call = observe(functools.partial(op, **kwargs), *args)
    impl = _tunable(call, implementation)
    run = functools.partial(op, implementation=impl.name, **kwargs)
    best = search(
        impl.module.heuristic(call.spec, target_device()),
        impl.module.candidates(call.spec, target_device()),
        functools.partial(_rank, run, args, samples),
        gradients=gradients,
    )
    if store:
        device = target_device()
        if device is None:
            raise RuntimeError(f"{call.op}: winners are stored by GPU, and JAX sees no GPU")
        path = core_config.store(impl.module.TUNED_AS, device.name, call.spec, best)
        _LOG.info("%s: stored %s in %s", call.op, best, path)
    return best


Rank = Callable[[Sequence[Any], bool], list[tuple[float, Any]]]
"""Times configs, forward or with gradients; returns seconds and configs, fastest first."""


def search(start: Any, candidates: Iterable[Any], rank: Rank, *, gradients: bool) -> Any:
    """Finds the fastest config, the forward kernel's first.

    Args:
        start: The config of a call that was not measured.
        candidates: The configs to try.
        rank: Times configs.
        gradients: Searches the configs of differentiated calls as well.
    """
    candidates = [start, *candidates]
    if not hasattr(start, "forward"):
        return rank(_distinct(candidates), False)[0][1]
    forward = [dataclasses.replace(start, forward=config.forward) for config in candidates]
    best = rank(_distinct(forward), False)[0][1]
    if gradients:
        both = [dataclasses.replace(config, forward=best.forward) for config in candidates]
        best = rank(_distinct(both), True)[0][1]
    return best


def _distinct(configs: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(configs))


def _tunable(call: Call, name: str | None) -> Implementation:
    """Returns the implementation to tune.

    Raises:
        RuntimeError: There is none.
    """
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    reasons = []
    for impl in (call.table[n] for n in best_first(call.spec, target_device(), call.table)):
        if name not in (None, impl.name):
            continue
        reason = impl.supports(call.spec, target_device())
        if impl.config_type is None:
            reason = "has no configs"
        elif impl.platforms and here not in impl.platforms and not is_interpreting():
            reason = f"runs on {', '.join(impl.platforms)}"
        if reason is None:
            return impl
        reasons.append(f"{impl.name!r} {reason}")
    raise RuntimeError(
        f"{call.op}: there is nothing to tune on {here}: {'; '.join(reasons) or f'no {name!r}'}"
    )


def _rank(
    run: Callable[..., Any],
    args: Sequence[jax.Array],
    samples: int,
    configs: Sequence[Any],
    gradients: bool,
) -> list[tuple[float, Any]]:
    """Times configs; returns median seconds per call of those that compile, fastest first.

    Raises:
        RuntimeError: No config compiles.
    """
    inputs = [args, *([jnp.copy(x) for x in args] for _ in range(_INPUT_SETS - 1))]

    # Contexts of JAX hold in one thread only.
    context = interpret if is_interpreting() else contextlib.nullcontext

    def compiled(config: Any) -> Callable[..., Any] | None:
        function = functools.partial(run, config=config)
        try:
            both = with_gradients(function) if gradients else function
            with context():
                return jax.jit(both).lower(*args).compile()
        except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
            _LOG.info("skipped %s: %s", config, str(error)[:200])
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = {
            config: program
            for config, program in zip(configs, pool.map(compiled, configs), strict=True)
            if program is not None
        }
    if not programs:
        raise RuntimeError("no config compiles for this call on this GPU")

    def calls(program: Callable[..., Any]) -> Callable[[], Any]:
        rotated = itertools.cycle(inputs)
        return lambda: program(*next(rotated))

    seconds = interleaved(
        {str(config): candidate(calls(program)) for config, program in programs.items()},
        repeats=samples,
        sample_seconds=_SAMPLE_SECONDS,
    )
    ranked = [(statistics.median(seconds[str(config)]), config) for config in programs]
    return sorted(ranked, key=lambda pair: pair[0])


def with_gradients(run: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function that returns the results of `run` and the gradients of floating arrays."""

    def both(*arrays: jax.Array) -> Any:
        out, pullback = vjp_of_floats(run, *arrays)
        return out, pullback(jax.tree.map(jnp.ones_like, out))

    return both
