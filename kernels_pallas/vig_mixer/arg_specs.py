"""Cases that tests, benchmarks and autotuning share."""

import numpy as np
from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case, normal
from ..gla.arg_specs import WORKLOADS, Workload


def _weights(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws weights that keep the deviation of their inputs."""
    return shape[0] ** -0.5 * generator.standard_normal(shape)


def _case(workload: Workload, rank: int = 16) -> Case:
    width = workload.heads * workload.value_width
    tokens = (workload.batch, workload.tokens)
    args = {
        "projected": Array((*tokens, 3 * width + rank), "bfloat16"),
        "local": Array((*tokens, width), "bfloat16"),
        "gate_bias": Array((width,), "float32"),
        "decay_kernel": Array((rank, width), "bfloat16"),
        "decay_bias": Array((width,), "float32"),
        "scan_scale": Array((workload.value_width,), "float32"),
        "local_scale": Array((workload.value_width,), "float32"),
        "out_kernel": Array((width, width), "bfloat16"),
    }
    scale = normal(0.3, mean=1.0)
    draws = {"scan_scale": scale, "local_scale": scale}
    draws |= {"decay_kernel": _weights, "out_kernel": _weights}
    kwargs = {"heads": workload.heads}
    batched = frozenset({"projected", "local"})
    tags = frozenset({MODEL} if workload.name.startswith("vig_") else ())
    return Case(workload.name, args, kwargs, draws, tags, batched)


# Keys of the mixer are half as wide as its values.
CASES = tuple(
    _case(workload)
    for workload in WORKLOADS.values()
    if workload.value_width == 2 * workload.key_width and workload.op == "bidirectional_gla"
)
