"""Named shapes of gated linear attention: what tests, tuning and benchmarks run."""

import dataclasses

import jax
import numpy as np

from ..core.arg_specs import MODEL, Case


@dataclasses.dataclass(frozen=True)
class Workload:
    """One shape.

    Attributes:
        name: Model, input size and, for hierarchical models, stage.
        batch: Images B.
        tokens: Tokens T.
        heads: Heads H.
        key_width: Key width K per head.
        value_width: Value width V per head.
        op: The operator that the model calls, "bidirectional_gla" or "gla".
    """

    name: str
    batch: int
    tokens: int
    heads: int
    key_width: int
    value_width: int
    op: str = "bidirectional_gla"


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        # One grid of 14 x 14 tokens at 224 pixels, 32 x 32 at 512, 64 x 64 at 1024, and so on.
        Workload("vig_t_224", 256, 196, 3, 32, 64),
        Workload("vig_s_224", 256, 196, 6, 32, 64),
        Workload("vig_b_224", 256, 196, 12, 32, 64),
        Workload("vig_t_512", 32, 1024, 3, 32, 64),
        Workload("vig_t_1024", 16, 4096, 3, 32, 64),
        Workload("vig_t_1024_batch8", 8, 4096, 3, 32, 64),
        Workload("vig_t_2048", 2, 16384, 3, 32, 64),
        # Four stages of 56, 28, 14 and 7 tokens a side; ViG-H-S has the shapes of ViG-H-T.
        Workload("vig_h_t_224_stage1", 64, 3136, 3, 16, 32),
        Workload("vig_h_t_224_stage1_batch256", 256, 3136, 3, 16, 32),
        Workload("vig_h_t_224_stage2", 256, 784, 6, 16, 32),
        Workload("vig_h_t_224_stage3", 256, 196, 12, 16, 32),
        Workload("vig_h_t_224_stage4", 256, 49, 24, 16, 32),
        Workload("vig_h_b_224_stage1", 64, 3136, 4, 16, 32),
        Workload("vig_h_b_224_stage1_batch256", 256, 3136, 4, 16, 32),
        Workload("vig_h_b_224_stage2", 256, 784, 8, 16, 32),
        Workload("vig_h_b_224_stage3", 256, 196, 16, 16, 32),
        Workload("vig_h_b_224_stage4", 256, 49, 32, 16, 32),
        # A language model's heads, one direction.
        Workload("lm_2048", 8, 2048, 16, 64, 128, op="gla"),
        Workload("lm_4096", 4, 4096, 16, 128, 128, op="gla"),
        # Small enough for a laptop.
        Workload("cpu_784", 4, 784, 6, 32, 64),
        Workload("cpu_196", 8, 196, 6, 32, 64),
        Workload("cpu_49", 8, 49, 24, 16, 32),
        # For tests: less than a chunk, ragged chunks, odd widths, wide heads.
        Workload("tiny", 1, 5, 1, 4, 8),
        Workload("tiny_ragged", 2, 75, 2, 8, 12),
        Workload("tiny_odd", 1, 40, 3, 5, 7),
        Workload("tiny_wide", 1, 72, 1, 64, 64),
    )
}
"""Every workload by name."""


def _log_decays(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws log-decays as a ViG layer makes them: log_sigmoid(x) / 16."""
    return -np.logaddexp(0.0, -2.0 * generator.standard_normal(shape)) / 16


def make_case(op: str, workload: Workload) -> Case:
    """Makes the call of "gla" or "bidirectional_gla" at a workload's shape."""
    decays = ("log_decay",) if op == "gla" else ("log_decay_fwd", "log_decay_bwd")
    keys = (workload.batch, workload.tokens, workload.heads, workload.key_width)
    args = dict.fromkeys(("q", "k", "v", *decays), jax.ShapeDtypeStruct(keys, "bfloat16"))
    args["v"] = jax.ShapeDtypeStruct((*keys[:3], workload.value_width), "bfloat16")
    return Case(
        workload.name,
        args,
        draws=dict.fromkeys(decays, _log_decays),
        tags=frozenset({MODEL} if workload.name.startswith(("vig_", "lm_")) else ()),
        batched=frozenset(args),
    )


def _cases(op: str) -> tuple[Case, ...]:
    return tuple(
        make_case(op, workload)
        for workload in WORKLOADS.values()
        if workload.op == op or not workload.name.startswith(("vig_", "lm_"))
    )


BIDIRECTIONAL_CASES = _cases("bidirectional_gla")
"""The calls of `bidirectional_gla` that tests, benchmarks and autotuning share."""

GLA_CASES = _cases("gla")
"""The calls of `gla` that tests, benchmarks and autotuning share."""
