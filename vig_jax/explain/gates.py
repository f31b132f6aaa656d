"""Gates of the mixers: how far the heads remember, and how much the local branch weighs."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Float32

from vig_jax.errors import ConfigError
from vig_jax.explain.maps import apply_maps
from vig_jax.models.backbone import Backbone

_ROUNDING = 1e-6  # of sums of log-decays


class BlockGates(NamedTuple):
    """The gates of a block, for every head and token.

    Attributes:
        memory_fwd: tokens that the scan from the first token to the last remembers [B, H, h, w];
            see `memory_lengths`.
        memory_bwd: likewise for the scan from the last token to the first.
        local_weight: the weight of the local branch, from 0 to 1, where 1 minus it is the weight
            of the scans; mean over the channels of a head [B, H, h, w].
    """

    memory_fwd: Float32[np.ndarray, "B H h w"]
    memory_bwd: Float32[np.ndarray, "B H h w"]
    local_weight: Float32[np.ndarray, "B H h w"]


def block_gates(
    model: Backbone, variables: Mapping[str, Any], images: Float[Array | np.ndarray, "B H W C"]
) -> dict[str, BlockGates]:
    """Returns the gates of all blocks by the path of the block, in order.

    They are the intermediates that the mixers store on request; see
    `vig_jax.layers.gated_linear_attention.GatedLinearAttention`. Paths are as "blocks_0" in plain
    models and "stages_0.blocks_1" in hierarchical ones.

    Args:
        model: from `create_model`.
        variables: of the model.
        images: normalised pixels.

    Raises:
        ConfigError: the model stores no gates, or the images are too small.
    """

    def capture(variables: Any, images: jax.Array) -> Any:
        maps, state = apply_maps(model, variables, images, mutable=["intermediates"])
        flat = traverse_util.flatten_dict(state.get("intermediates", {}))
        blocks: dict[tuple[str, ...], dict[str, jax.Array]] = {}
        for (*block, _, name), (value,) in flat.items():
            if name in ("log_decay_fwd", "log_decay_bwd", "local_gate"):
                blocks.setdefault(tuple(block), {})[name] = value
        for gates in blocks.values():
            heads = gates["log_decay_fwd"].shape[2]
            weight = gates.pop("local_gate")
            weight = weight.reshape(*weight.shape[:2], heads, -1)
            gates["local_weight"] = 1 - jnp.mean(weight, axis=-1)
        return {".".join(block): gates for block, gates in blocks.items()}, [x[:1] for x in maps]

    run = jax.jit(capture)
    grids = {
        x.shape[1] * x.shape[2]: x.shape[1:3] for x in jax.eval_shape(run, variables, images)[1]
    }
    images = jnp.asarray(images)
    parts: dict[str, list[BlockGates]] = {}
    for i in range(len(images)):
        captured = jax.device_get(run(variables, images[i : i + 1])[0])
        for block, gates in captured.items():
            parts.setdefault(block, []).append(_block(gates, grids))
    if not parts:
        raise ConfigError(
            f"{type(model).__name__} stores no gates: its mixers must be "
            "vig_jax.layers.gated_linear_attention.GatedLinearAttention"
        )
    order = sorted(parts, key=lambda block: [int(n) for n in re.findall(r"\d+", block)])
    return {
        block: BlockGates(*map(np.concatenate, zip(*parts[block], strict=True))) for block in order
    }


def memory_lengths(
    log_decay: Float[np.ndarray, "B T H K"], *, reverse: bool = False
) -> Float32[np.ndarray, "B T H"]:
    """Returns how many tokens back every token remembers.

    It is the number of tokens before it, in the order of the scan, whose keys and values it reads
    with a weight of at least 1/e: the product of the decays since then. There are none before the
    first token. The result is the mean over the K key channels of a head.

    Args:
        log_decay: in [-inf, 0].
        reverse: the scan begins at the last token.
    """
    if reverse:
        return memory_lengths(log_decay[:, ::-1])[:, ::-1]
    # A decay of exp(-2) ends a memory as exp(-inf) does, and has sums.
    sums = np.cumsum(np.maximum(log_decay, -2.0), axis=1, dtype=np.float64)
    batch, tokens, heads, channels = sums.shape
    columns = -sums.transpose(0, 2, 3, 1).reshape(-1, tokens)
    first = np.stack([np.searchsorted(x, x - 1 - _ROUNDING) for x in columns])
    lengths = (np.arange(tokens) - first).reshape(batch, heads, channels, tokens)
    return lengths.mean(axis=2).transpose(0, 2, 1).astype(np.float32)


def _block(gates: Mapping[str, np.ndarray], grids: Mapping[int, tuple[int, int]]) -> BlockGates:
    """Returns the gates of a block as maps."""

    def as_map(x: np.ndarray) -> np.ndarray:
        batch, tokens, heads = x.shape
        return x.transpose(0, 2, 1).reshape(batch, heads, *grids[tokens])

    return BlockGates(
        as_map(memory_lengths(gates["log_decay_fwd"])),
        as_map(memory_lengths(gates["log_decay_bwd"], reverse=True)),
        as_map(gates["local_weight"]),
    )
