"""The weight files that the authors of ViG publish, recognised by name."""

import dataclasses
from pathlib import Path

from vig_jax.files import file_digest


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of hustvl/ViG.

    Attributes:
        model_name: one of `vig_jax.list_models()`.
        sha256: the first eight digits of its SHA-256.
        top1: the accuracy on ImageNet-1k that its name states, in percent.
    """

    model_name: str
    sha256: str
    top1: float


# Under which licence these files may be used is unclear.
PUBLISHED_FILES = {
    "vig_t_77p2acc.pth": PublishedFile("vig_t", "a1eb2901", 77.2),
    "vig_s_81p7acc.pth": PublishedFile("vig_s", "ad1c62e8", 81.7),
    "vig_b_82p6acc.pth": PublishedFile("vig_b", "0a681cca", 82.6),
    "vig_h_t_82p8acc.pth": PublishedFile("vig_h_t", "287d1b6e", 82.8),
    "vig_h_s_83p8acc.pth": PublishedFile("vig_h_s", "0d52501e", 83.8),
    "vig_h_b_84p2acc.pth": PublishedFile("vig_h_b", "49acb314", 84.2),
}


def published_model(path: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the model of a published file and notes about it; ("", ()) for any other name.

    The file is read to the end for its SHA-256. A note says if that differs from the published one.
    """
    known = PUBLISHED_FILES.get(path.name)
    if known is None:
        return "", ()
    found = file_digest(path)[: len(known.sha256)]
    if found == known.sha256:
        return known.model_name, ()
    note = (
        f"its SHA-256 begins with {found}, that of the file which hustvl/ViG publishes under this "
        f"name with {known.sha256}: it is another file, or a changed one"
    )
    return known.model_name, (note,)
