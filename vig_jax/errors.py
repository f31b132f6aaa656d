"""The errors that end in one line for the user, under one base class.

The command line prints the message of a `UserError` and exits. Any other exception, except for a
few kinds of `OSError`, is a defect of the program and keeps its traceback. Each class also inherits
from the built-in kind that fits it, so `except ValueError` in a caller's code works as well.
"""

import errno
import os


class UserError(Exception):
    """Base class: the user can cure the cause, and the message says how."""


class ConfigError(UserError, ValueError):
    """A setting or option is unknown, has the wrong type, or cannot work."""


class DataSetError(UserError, ValueError):
    """A data set is missing, is malformed, or cannot be loaded as requested."""


class UnreadableRecordError(UserError, OSError):
    """One record is damaged or has an unknown layout; it counts as a bad image."""


class UndecodableImageError(UserError, ValueError):
    """Pillow cannot read the bytes as a complete image."""


class UnusableMaskError(UndecodableImageError):
    """A mask does not fit its image or the classes, or is not a mask of labels."""


class TooManyBadImagesError(UserError, RuntimeError):
    """More images failed to decode than `config.data.max_bad_images` allows."""


class ConversionError(UserError, RuntimeError):
    """A data set cannot be converted: too many bad images, a full disk, a lost worker."""


class DataWorkerError(UserError, RuntimeError):
    """A process that makes batches has died."""


class WeightsError(UserError, ValueError):
    """A weight file cannot be read or does not fit the model."""


class ExportError(UserError, RuntimeError):
    """A model cannot be translated, or the exported program has other results."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete, cannot be read, or fails its digests."""


class FolderInUseError(UserError, RuntimeError):
    """Another process writes into the folder."""


class ReportError(UserError, ValueError):
    """A run has no metrics to report."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss, the gradient or an evaluation result is NaN or infinite."""


REPORTED_ERRORS: tuple[type[Exception], ...] = (
    UserError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""The kinds that a command reports in one line: the user's, and paths that cannot be used."""


# Phrases of Gloo, NCCL and the coordination service when the other end of a connection is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "heartbeat timeout",
    "remote process exited",
    "stopped sending heartbeats",
    "JAX distributed service detected fatal errors",
)


def is_lost_process(error: BaseException | str) -> bool:
    """Returns whether an error, one of its causes, or a log says that another process is gone.

    Orbax, for example, raises a `TimeoutError` whose cause is that of JAX.
    """
    texts = []
    current: BaseException | str | None = error
    while isinstance(current, BaseException):
        texts.append(str(current))
        current = current.__cause__ or current.__context__
    texts.append(current or "")
    return any(phrase in text for text in texts for phrase in _LOST)


def is_full_disk(error: OSError | ValueError) -> bool:
    """Returns whether an error means that the disk or the quota is full.

    TensorStore, which writes checkpoints, raises a `ValueError` with the system's words.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    return any(os.strerror(number) in str(error) for number in full)
