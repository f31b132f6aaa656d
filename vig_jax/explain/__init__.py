"""Explanations of a model: receptive fields, memory of the heads, gates, saliency."""

from vig_jax.explain.explanation import Explanation, explain
from vig_jax.explain.figure import draw_explanation
from vig_jax.explain.gates import BlockGates, block_gates, memory_lengths
from vig_jax.explain.receptive_field import contribution_area, receptive_fields
from vig_jax.explain.saliency import class_saliency

__all__ = [
    "BlockGates",
    "Explanation",
    "block_gates",
    "class_saliency",
    "contribution_area",
    "draw_explanation",
    "explain",
    "memory_lengths",
    "receptive_fields",
]
