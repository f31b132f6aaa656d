"""Options of a conversion."""

import dataclasses

from vig_jax.data.convert.writers import WRITERS
from vig_jax.data.preprocess.limits import MAX_PIXELS
from vig_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a conversion. To resume one requires equal options."""

    to: str = "array_record"  # a name of vig_jax.data.convert.writers
    shards: int | None = None  # of the training split, others in proportion; None: by shard_size
    shard_size: int = 256 * 2**20  # bytes, about
    resize_short: int = 0  # pixels that longer shorter sides are reduced to; 0: copy the files
    reencode_progressive: bool = False  # re-encode JPEGs that decode slowly
    quality: int = 95  # of the JPEGs that resizing and re-encoding make
    subsampling: str = "4:2:0"  # of their colours
    shuffle: bool = True
    seed: int = 0  # of the order
    limit: int | None = None  # images per split, the first of the order
    decode: bool = True  # check that copied images can be decoded
    raw: bool = False  # store pixels instead of files: nothing to decode, much to store
    leave_out_damaged: bool = False  # JPEGs that decode in spite of damage
    max_image_pixels: int = MAX_PIXELS  # width times height; larger images are left out

    def check(self) -> None:
        """Raises ConfigError if a setting is out of range."""
        subsamplings = ("4:4:4", "4:2:2", "4:2:0")
        requirements = {
            "to": (self.to in WRITERS, f"one of {', '.join(WRITERS)}"),
            "shards": (self.shards is None or 1 <= self.shards <= 99_999, "1 to 99,999"),
            "shard_size": (self.shard_size >= 1, "at least 1"),
            "resize_short": (self.resize_short >= 0, "at least 0"),
            "quality": (1 <= self.quality <= 100, "1 to 100"),
            "subsampling": (self.subsampling in subsamplings, f"one of {', '.join(subsamplings)}"),
            "seed": (0 <= self.seed < 2**32, "0 to 2**32 - 1"),
            "raw": (not self.raw or self.to == "array_record", "false except for array_record"),
            "max_image_pixels": (self.max_image_pixels >= 1, "at least 1"),
            "limit": (self.limit is None or self.limit >= 1, "at least 1"),
        }
        for name, (holds, required) in requirements.items():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)} must be {required}")
