"""The tolerances that every implementation of every operator is held to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest `rms_relative_error` allowed against a float64 run of the reference.

    Attributes:
        forward: For outputs and states.
        gradient: For the gradient of every input.
    """

    forward: float
    gradient: float


TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(forward=1e-12, gradient=1e-12),
    "float32": Tolerance(forward=1e-5, gradient=5e-5),
    "float16": Tolerance(forward=1e-3, gradient=2e-3),
    "bfloat16": Tolerance(forward=5e-3, gradient=1e-2),
}
"""The tolerance for each type of an operator's arrays."""
