"""Reads the headers of a tar: where its images are, and their labels."""

import collections
import dataclasses
import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vig_jax.data.formats.image_folder import is_hidden, is_image
from vig_jax.errors import DataSetError
from vig_jax.text import printable

logger = logging.getLogger(__name__)

_BLOCK = 512  # bytes; a tar ends with zeros of at least this length
_LONGEST_CLS = 64  # bytes; the contents of a .cls are one number
_MOST_LINKS = 40  # that one name may follow, as in Linux
_LARGEST_LABEL = 2**31 - 1
_LAYOUT = "NUMBER.jpg with NUMBER.cls (WebDataset), or CLASS/NAME.jpg"


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """An index of the images of one tar. The arrays have one entry per image, in its order."""

    size: int  # of the tar, bytes
    mtime: int  # of the tar, nanoseconds
    offsets: np.ndarray  # int64
    lengths: np.ndarray  # int64; -1: the member is a link to nothing, or sparse
    labels: np.ndarray  # int32; -1 if a folder's name is the class
    names: tuple[str, ...]  # of the members

    @property
    def by_folder(self) -> bool:
        """True if the folders are the classes."""
        return bool((self.labels == -1).all())


class _Member(NamedTuple):
    name: str
    offset: int  # of the contents, bytes
    size: int  # -1: the contents cannot be read
    link: str = ""  # the normalised name that the member refers to
    symbolic: bool = False


def build_index(file: Path) -> TarIndex:
    """Reads all headers of a tar, and the .cls members.

    It takes 15 us of CPU time per image where all headers are ordinary. Links are followed within
    the tar. Of several members with one name, the last one counts, as when a tar is unpacked.

    Raises:
        DataSetError: the file is not a tar, is compressed or truncated, has neither layout, or a
            header is wrong about a size.
    """
    stat = file.stat()
    try:
        with file.open("rb") as opened:
            members, end = _read_members(opened.fileno(), stat.st_size) or _with_tarfile(
                file, stat.st_size
            )
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataSetError(
            f"{file} is truncated or not a plain tar file ({error}). A compressed tar must be "
            "unpacked first: it has no random access"
        ) from error
    for member in members:
        if not 0 <= member.offset <= stat.st_size - max(0, member.size):
            raise DataSetError(
                f"{file} is truncated, or a header is damaged: {member.name!r} has "
                f"{member.size} bytes from byte {member.offset} on, but the file has "
                f"{stat.st_size}. Copy it again"
            )
    if not _ends_with_zeros(file, end):
        raise DataSetError(
            f"{file} is truncated: the zeros that end a tar are missing. Copy it again"
        )
    images, classes = _sort(file, _follow_links(members))
    return TarIndex(
        size=stat.st_size,
        mtime=stat.st_mtime_ns,
        offsets=np.array([image.offset for image in images], np.int64),
        lengths=np.array([image.size for image in images], np.int64),
        labels=_labels(file, [image.name for image in images], classes),
        names=tuple(image.name for image in images),
    )


def _read_members(handle: int, size: int) -> tuple[list[_Member], int] | None:
    """Reads ordinary headers quickly; None if there is any other, or damage."""
    members: list[_Member] = []
    position = 0
    while position + _BLOCK <= size:
        header = os.pread(handle, _BLOCK, position)
        if header[0] == 0:
            return (members, position) if not any(header) else None
        try:
            length, checksum = int(header[124:136].rstrip(b" \0"), 8), int(header[148:154], 8)
        except ValueError:
            return None
        if sum(header) - sum(header[148:156]) + 256 != checksum or header[156:157] not in b"05\0":
            return None
        if header[156:157] != b"5":
            name = header[:100].partition(b"\0")[0]
            if header[257:263] == b"ustar\0" and header[345]:
                name = header[345:500].partition(b"\0")[0] + b"/" + name
            if name.endswith(b"/"):  # a folder, in the oldest format
                return None
            text = name.decode("utf-8", "surrogateescape")
            members.append(_Member(text, position + _BLOCK, length))
        else:
            length = 0
        position += _BLOCK * (1 + -(-length // _BLOCK))
    return None


def _with_tarfile(file: Path, size: int) -> tuple[list[_Member], int]:
    members = []
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            if not 0 <= member.size <= size:
                raise ValueError(f"{member.name!r} has {member.size} bytes, the file {size}")
            if member.islnk() or member.issym():
                link = _normal(member.linkname)
                if member.issym():
                    folder = posixpath.dirname(member.name)
                    link = posixpath.normpath(posixpath.join(folder, member.linkname))
                members.append(_Member(member.name, 0, -1, link, member.issym()))
            elif member.isfile():
                length = -1 if member.issparse() else member.size
                members.append(_Member(member.name, member.offset_data, length))
        return members, archive.offset


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _follow_links(members: Sequence[_Member]) -> Iterator[_Member]:
    """Yields the files of a tar, with the contents that links refer to."""
    by_name = {_normal(member.name): member for member in members}  # the last one of each name
    folders: dict[str, list[str]] = collections.defaultdict(list)
    if any(member.symbolic for member in members):
        for name in by_name:
            parts = name.split("/")
            for depth in range(1, len(parts)):
                folders["/".join(parts[:depth])].append("/".join(parts[depth:]))
    for member in members:
        if by_name[_normal(member.name)] is not member:
            continue
        if not member.link:
            yield member
            continue
        target = _target(member.link, by_name)
        if target is None and _normal(member.name).startswith(f"{member.link}/"):
            continue  # a circle: the link leads to a folder that it is in
        if target is None and member.symbolic and member.link in folders:
            for below in folders[member.link]:
                inner = _target(f"{member.link}/{below}", by_name)
                if inner or is_image(below):
                    found = inner or _Member("", 0, -1)
                    yield found._replace(name=f"{member.name}/{below}")
            continue
        if target is None and not is_image(member.name):
            logger.warning(
                "left out: %s is a link to %s, which is not in the tar",
                printable(member.name),
                printable(member.link),
            )
        yield target._replace(name=member.name) if target else member


def _target(name: str, by_name: Mapping[str, _Member]) -> _Member | None:
    for _ in range(_MOST_LINKS):
        member = by_name.get(name)
        if member is None or not member.link:
            return member
        name = member.link
    return None


def _sort(file: Path, members: Iterator[_Member]) -> tuple[list[_Member], dict[str, int]]:
    """Returns the images, and the numbers in the .cls files by key."""
    images: list[_Member] = []
    classes: dict[str, int] = {}
    with file.open("rb") as opened:
        for member in members:
            if any(is_hidden(part) for part in folders_and_base(member.name) if part != ".."):
                continue
            key = _key(member.name)
            if member.name == f"{key}.cls":
                classes[key] = _number(file, opened.fileno(), member)
            elif is_image(member.name):
                images.append(member)
    return images, classes


def _number(file: Path, handle: int, member: _Member) -> int:
    """Returns the label in a .cls member."""
    contents = b""
    if 0 <= member.size <= _LONGEST_CLS:
        contents = os.pread(handle, member.size, member.offset)
    try:
        label = int(contents)
    except ValueError as error:
        raise DataSetError(
            f"{file} has an unknown layout: {member.name} is not one number"
        ) from error
    if not 0 <= label <= _LARGEST_LABEL:
        raise DataSetError(
            f"{file}: labels are out of range: {member.name} has label {label}; they count from 0"
        )
    return label


def _key(name: str) -> str:
    """Returns the key of a WebDataset sample: the name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def folders_and_base(name: str) -> list[str]:
    """Returns the parts of a member's name, without "." and empty parts."""
    return [part for part in name.split("/") if part not in ("", ".")]


def folders_of(name: str) -> list[str]:
    """Returns the folders of a member, the outermost first."""
    return folders_and_base(name)[:-1]


def _labels(file: Path, names: Sequence[str], classes: Mapping[str, int]) -> np.ndarray:
    if not names:
        raise DataSetError(f"{file} has no images; the layout must be {_LAYOUT}")
    if not classes:
        for name in names:
            folders = folders_of(name)
            if not folders or ".." in folders:
                problem = "leads out of the tar" if folders else "has no class"
                raise DataSetError(
                    f"{file} has an unknown layout: {name} {problem}; it must be {_LAYOUT}"
                )
        return np.full(len(names), -1, np.int32)
    keys = [_key(name) for name in names]
    twice = [key for key, count in collections.Counter(keys).items() if count > 1]
    lacking = [key for key in keys if key not in classes]
    if twice or lacking:
        problem = f"{twice[0]} has two images" if twice else f"{lacking[0]} has no .cls"
        raise DataSetError(f"{file} has an unknown layout: {problem}; it must be {_LAYOUT}")
    return np.array([classes[key] for key in keys], np.int32)


def _ends_with_zeros(file: Path, end: int) -> bool:
    with file.open("rb") as contents:
        contents.seek(end - _BLOCK if end >= _BLOCK else 0)
        tail = contents.read(2 * _BLOCK)
    return len(tail) >= _BLOCK and not any(tail[-_BLOCK:])
