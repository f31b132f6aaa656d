"""Reads large JSON files element by element, in little memory."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from vig_jax.errors import DataSetError
from vig_jax.text import printable

_CHUNK = 2**20  # characters
_BLANKS = " \t\r\n"
_BEHIND_VALUES = {*_BLANKS, *",:]}"}


def elements(file: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yields the elements of some arrays of the object that a file holds, in the order of the file.

    Args:
        file: UTF-8.
        keys: of the arrays. Other values of the object are skipped.

    Yields:
        The key of an array and one of its elements.

    Raises:
        DataSetError: the file is not JSON, or not such an object.
        OSError: it cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            reader = _Reader(opened)
            reader.expect("{")
            while reader.next_is_not("}"):
                key = reader.value()
                reader.expect(":")
                if key not in keys or reader.peek() != "[":
                    reader.value()
                    continue
                reader.expect("[")
                while reader.next_is_not("]"):
                    yield key, reader.value()
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataSetError(
            f"{printable(str(file))} is not complete JSON ({error}): copy or write it again"
        ) from error


class _Reader:
    """A position in a text of which only a part is in memory."""

    def __init__(self, file: TextIO):
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Returns the next character that is not blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def expect(self, character: str) -> None:
        """Moves past a character; raises JSONDecodeError if it is another one."""
        if self.peek() != character:
            raise json.JSONDecodeError(f"expecting {character!r}", self._text, self._at)
        self._at += 1

    def next_is_not(self, end: str) -> bool:
        """Returns whether an element follows, and moves past a comma or the end."""
        if self.peek() == ",":
            self._at += 1
            return True
        if self.peek() == end:
            self._at += 1
            return False
        if not self.peek():
            self.expect(end)
        return True

    def value(self) -> Any:
        """Returns the next value and moves past it."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            else:
                # A number at the end of the part may have more digits.
                if self._text[end : end + 1] in _BEHIND_VALUES or self._ended:
                    self._at = end
                    return value
            self._read_more()

    def _read_more(self) -> None:
        rest = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not chunk
        self._text, self._at = rest + chunk, 0
