"""The labels of masks: names, colours, and the raw labels that files have for them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.errors import DataSetError

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

_LINE = re.compile(r"(?P<name>.*?)(?:\s+#(?P<colour>[0-9a-fA-F]{6}))?\s*")


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The classes of a data set of masks.

    Args:
        class_names: by class.
        palette: the colour of each class, for figures.
        raw_labels: the label of each class in the files; None: the number of the class, or one more
            if label 0 means no class.
        ignored_labels: others that the files may have; their pixels are ignored.
        largest_label: in the files, except 255; None if it is not known.
        seen_label: one that some of the files have.
    """

    class_names: tuple[str, ...]
    palette: tuple[Colour, ...]
    raw_labels: tuple[int, ...] | None = None
    ignored_labels: tuple[int, ...] = ()
    largest_label: int | None = None
    seen_label: int | None = None

    def metadata(self) -> dict[str, Any]:
        """Returns the entries for `DatasetInfo.metadata`, which `label_lookup` reads."""
        palette = [list(colour) for colour in self.palette]
        entries: dict[str, Any] = {"class_names": self.class_names, "palette": palette}
        if self.raw_labels is not None:
            entries["raw_labels"] = list(self.raw_labels)
        if self.ignored_labels:
            entries["ignored_labels"] = list(self.ignored_labels)
        for name in ("largest_label", "seen_label"):
            if (label := getattr(self, name)) is not None:
                entries[name] = label
        return entries

    def possible(self) -> frozenset[int]:
        """Returns the labels that the files may have, whether label 0 means no class or not."""
        if self.raw_labels is not None:
            return frozenset((*self.raw_labels, *self.ignored_labels, IGNORED))
        return frozenset((*range(len(self.class_names) + 1), IGNORED))


def parse_table(lines: Sequence[str], where: object) -> LabelTable:
    """Returns the table that a file of class names has, one per line, perhaps with its colour.

    Args:
        lines: such as "wall" or "wall #787878". Classes without a colour get one of `colours`.
        where: the file, for messages.

    Raises:
        DataSetError: a line has no name, or a name occurs twice.
    """
    names, palette = [], []
    for number, (line, default) in enumerate(zip(lines, colours(len(lines)), strict=True), start=1):
        match = _LINE.fullmatch(line)
        if match is None or not match["name"].strip():
            raise DataSetError(
                f"{where}: line {number} is {line!r}; write one class name per line, by label, and "
                "after it perhaps a colour such as #787878"
            )
        name, digits = match["name"].strip(), match["colour"]
        if name in names:
            raise DataSetError(f"{where}: {name!r} occurs twice; write one class name per line")
        names.append(name)
        palette.append(_of_hex(digits) if digits else default)
    return LabelTable(tuple(names), tuple(palette))


def _of_hex(digits: str) -> Colour:
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def colours(count: int) -> tuple[Colour, ...]:
    """Returns the first colours of PASCAL VOC's palette, which are all different.

    Three bits of a class number at a time, the lowest first, are the highest bits of red, green and
    blue.
    """

    def channel(label: int, place: int) -> int:
        return sum((label >> (3 * i + place) & 1) << (7 - i) for i in range(3))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))
