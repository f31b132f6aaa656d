"""Tilings of the blend's kernels; those of the scan are in `kernels_pallas.gla`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BlendConfig:
    """Tiling of one kernel of the blend.

    Attributes:
        programs: Upper bound on the grid; each program loops over blocks of rows.
        block: Elements of each array that a program works on at a time.
        num_warps: Warps per program.
    """

    programs: int
    block: int = 1024
    num_warps: int = 4


# Six and four programs for each multiprocessor of an H200; more would have to wait. The backward
# pass holds twice the values in registers, and XLA adds up the sums of its programs.
FORWARD = BlendConfig(programs=792)
BACKWARD = BlendConfig(programs=528)
