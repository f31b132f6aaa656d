"""Images that cannot be decoded: counted, named once, written down, and too many of them an error.

In training such an image is replaced by the next decodable one of the source, so that a run with
some broken files stays reproducible; in evaluation it has weight 0. Either way the batch carries
its index under "bad", and the main process hands that to `BadImages`.
"""

import contextlib
import json
import logging
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vig_jax.data.datasets.registry import Source
from vig_jax.data.preprocess import transforms
from vig_jax.errors import TooManyBadImagesError, UndecodableImageError

logger = logging.getLogger(__name__)


class BadImages:
    """Keeps the account of undecodable images of one source, in one process.

    Args:
        source: where the indices belong.
        limit: `update` raises above this many different images.
        log_path: JSON lines {"index", "path", "reason"} are appended here; None: nowhere. What an
            earlier account has written there is counted when met again, but not told again.
    """

    def __init__(self, source: Source, limit: int, log_path: Path | None = None):
        self._source = source
        self._limit = limit
        self._log_path = log_path
        self._indices: set[int] = set()
        self._told = _logged_paths(log_path)

    def __len__(self) -> int:
        return len(self._indices)

    def update(self, bad: Int64[np.ndarray, "b"]) -> None:
        """Takes note of a batch.

        Args:
            bad: index in the source of each row's undecodable image, or -1.

        Raises:
            TooManyBadImagesError: the limit is passed.
        """
        for index in np.unique(bad[bad >= 0]).tolist():
            if index in self._indices:
                continue
            self._indices.add(index)
            name = self._source.name_of(index)
            if name not in self._told:
                self._tell(index, name)
            if len(self._indices) > self._limit:
                where = f"; all are listed in {self._log_path}" if self._log_path else ""
                raise TooManyBadImagesError(
                    f"{len(self._indices)} images cannot be decoded, the latest {name}; "
                    f"config.data.max_bad_images={self._limit} allows no more{where}"
                )

    def _tell(self, index: int, name: str) -> None:
        reason = self._reason(index)
        logger.warning("cannot decode %s, left out: %s", name, reason)
        if self._log_path is not None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            with self._log_path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"index": index, "path": name, "reason": reason}) + "\n")

    def _reason(self, index: int) -> str:
        """Decodes once more, here: workers report only the index."""
        try:
            transforms.decode(self._source[index]["image"])
        except (UndecodableImageError, OSError) as error:
            return str(error)
        return "decoded at the second attempt: is the disk in order?"


def _logged_paths(log_path: Path | None) -> set[str]:
    if log_path is None or not log_path.exists():
        return set()
    paths = set()
    for line in log_path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):  # a line cut short by a crash
            paths.add(json.loads(line)["path"])
    return paths
