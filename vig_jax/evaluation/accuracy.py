"""One pass over an evaluation set, on all devices."""

import collections
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from vig_jax.sharding.mesh import batch_sharded, max_in_flight, prefetch_to_device, replicated
from vig_jax.tasks.protocol import Batch, Params, Sums, Task

EvalStep = Callable[[Params, Batch], Sums]
HostSums = dict[str, np.ndarray]
DEVICE_KEYS = ("image", "label", "weight")


def make_eval_step(task: Task, *, mesh: Mesh) -> EvalStep:
    """Compiles `(params, batch) -> weighted sums`."""
    everywhere = replicated(mesh)
    return jax.jit(
        task.evaluate,
        in_shardings=(everywhere, batch_sharded(mesh)),
        out_shardings=everywhere,
    )


def evaluate(
    eval_step: EvalStep,
    parameter_sets: Mapping[str, Params],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    on_batch: Callable[[Mapping[str, np.ndarray]], None],
) -> dict[str, HostSums]:
    """Evaluates several parameter sets on the same batches, each read once.

    Args:
        eval_step: from `make_eval_step`.
        parameter_sets: parameters by a name, e.g. the prefix of their metrics.
        batches: one pass, this process's rows of each global batch.
        mesh: of the parameters.
        on_batch: called with each host batch before it is used; may raise to end the pass.

    Returns:
        The sums over all batches, for `task.metrics`, by the names of the parameter sets.
    """
    totals: dict[str, Sums] = {}
    started: collections.deque[Sums] = collections.deque()
    ahead = max_in_flight()
    for batch, placed in prefetch_to_device(batches, mesh, DEVICE_KEYS):
        on_batch(batch)
        for name, params in parameter_sets.items():
            sums = eval_step(params, placed)
            before = totals.get(name)
            totals[name] = sums if before is None else jax.tree.map(jax.lax.add, before, sums)
            started.append(totals[name])
            if len(started) > ahead:
                jax.block_until_ready(started.popleft())
    return jax.device_get(totals)
