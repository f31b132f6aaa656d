"""One pass over an evaluation set, on all devices and over all processes."""

import collections
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vig_jax.sharding.mesh import (
    batch_sharded,
    check_axes,
    max_in_flight,
    prefetch_to_device,
    replicated,
)
from vig_jax.sharding.rules import with_whole_variables
from vig_jax.tasks.protocol import (
    Evaluation,
    HostBatch,
    PredictStep,
    SeveralPrograms,
    Variables,
)


def make_predict_step(evaluation: Evaluation[Any], *, mesh: Mesh) -> PredictStep:
    """Compiles `(variables, batch) -> outputs` over the mesh.

    An evaluation of several programs, such as sliding windows, has a method `predict_step(mesh)`
    that returns the function.

    Variables may be split over the mesh (`vig_jax.sharding.rules`); they are gathered where they
    are used.

    Raises:
        ConfigError: the mesh has axes that an evaluation cannot use.
    """
    check_axes(mesh)
    if isinstance(evaluation, SeveralPrograms):
        return evaluation.predict_step(mesh)
    rows = batch_sharded(mesh)
    return jax.jit(
        with_whole_variables(evaluation.predict, mesh),
        in_shardings=(None, rows),
        out_shardings=rows if evaluation.per_example else replicated(mesh),
    )


def evaluate(
    evaluation: Evaluation[Any],
    predict: PredictStep,
    variable_sets: Mapping[str, Variables],
    batches: Iterable[HostBatch],
    mesh: Mesh,
    *,
    on_batch: Callable[[HostBatch], None],
) -> dict[str, Any]:
    """Evaluates several sets of variables on the same batches, each read once.

    Args:
        evaluation: of the task.
        predict: from `make_predict_step`.
        variable_sets: variables by a name, for example the prefix of their metrics.
        batches: one pass over this process's rows of each global batch.
        mesh: of the variables.
        on_batch: called with each host batch before it is used; may raise to end the pass.

    Returns:
        The states over the whole data set, for `evaluation.compute`, by the names of the variable
        sets. All processes get the same.
    """
    states = {name: evaluation.init() for name in variable_sets}
    in_flight: collections.deque[tuple[str, Any, HostBatch]] = collections.deque()

    def finish(limit: int) -> None:
        while len(in_flight) > limit:
            name, outputs, batch = in_flight.popleft()
            jax.block_until_ready(outputs)
            if evaluation.per_example:
                outputs = jax.tree.map(_local_rows, outputs)
            states[name] = evaluation.update(states[name], outputs, batch)

    with jax.set_mesh(mesh):  # kernels are split over the ambient mesh
        for batch, on_devices in prefetch_to_device(batches, mesh, tuple(evaluation.batch_spec)):
            on_batch(batch)
            for name, variables in variable_sets.items():
                in_flight.append((name, predict(variables, on_devices), batch))
                finish(max_in_flight())
    finish(0)
    if not evaluation.per_example:
        return jax.device_get(states)
    if jax.process_count() == 1:
        return states
    gathered = _gather_objects(states)
    return {name: evaluation.merge([each[name] for each in gathered]) for name in states}


def _local_rows(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array that is split along its first axis."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _gather_objects(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order. Values are pickled."""
    encoded = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(encoded))).tolist()
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(encoded)] = encoded
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
