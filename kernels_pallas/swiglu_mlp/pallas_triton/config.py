"""Configurations of the kernels."""

import dataclasses
from collections.abc import Iterator

from ...core.config import choose
from ...core.device import Device
from ...linear_swiglu import pallas_triton as linear_swiglu
from ...swiglu import pallas_triton as swiglu
from ..spec import SwigluMlpSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one call.

    Attributes:
        forward: Of the first linear map with the gate, where nothing is differentiated.
        training: Of the gate's kernels under differentiation.
    """

    forward: linear_swiglu.Config
    training: swiglu.Config


def heuristic(spec: SwigluMlpSpec, device: Device | None = None) -> Config:
    """Returns the configs of the two operators that it is made of, measured ones included."""
    first, gate = linear_swiglu, swiglu
    return Config(
        choose(first.TUNED_AS, first.Config, first.heuristic, spec.linear_swiglu),
        choose(gate.TUNED_AS, gate.Config, gate.heuristic, spec.swiglu),
    )


def candidates(spec: SwigluMlpSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    usual = heuristic(spec, device)
    for forward in linear_swiglu.candidates(spec.linear_swiglu, device):
        yield dataclasses.replace(usual, forward=forward)
    for training in swiglu.candidates(spec.swiglu, device):
        yield dataclasses.replace(usual, training=training)
