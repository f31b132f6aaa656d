"""A process of a run on several, and its supervisor.

JAX aborts a process as soon as it knows that another one is gone, with about twenty lines.
Python cannot catch that. So `--distributed` starts the same command once more: the child trains,
and this process, which never uses JAX, says in one line how it ended.
"""

import faulthandler
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from vig_jax.data.loader.workers import end_with_parent
from vig_jax.errors import is_lost_process

LOST_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
"""The exit status of a process that ended because another one is gone."""

_CHILD = "VIG_JAX_SUPERVISOR"  # of a child: the supervisor's process and the pipe to it
_LOST = "error: another process of the run is gone"
_ABSENT = (
    "error: the processes of the run have not found each other: start all of them within five "
    "minutes, and check that --coordinator names the first one and that its port can be reached"
)
# What absl's log begins with before it aborts, or our own line.
_FATAL = re.compile(rb"^(F\d{4} \d\d:\d\d:\d\d|" + _LOST.encode() + rb")", re.MULTILINE)
_HELD = 0.5  # seconds for which libraries' messages wait for a fatal one
_PIPE_SECONDS = 5.0  # for data workers, which have the pipe too, to end


def lost_message(reason: str) -> str:
    """Returns the line about another process that is gone."""
    short = " ".join(reason.split())[:200]
    return (
        f"{_LOST} ({short}): its log has the reason. The same command on all hosts resumes from "
        "the newest checkpoint"
    )


def leave_lost(error: BaseException) -> NoReturn:
    """Reports an error that another process has caused by its end, and ends this one.

    At once: leaving JAX in order needs all processes, and aborts. The line takes the way of the
    libraries' messages, so that the supervisor knows of it if JAX is faster.
    """
    os.write(2, f"{lost_message(str(error))}\n".encode(errors="backslashreplace"))
    os._exit(LOST_STATUS)


def supervise() -> None:
    """Starts this program's command again and exits as it ends; returns in that child at once.

    The child's standard error is that of this process, except for what libraries write past
    Python: that passes through this process. Signals are passed on. The child ends within about a
    second of this process.

    Raises:
        SystemExit: in the supervisor, with the child's status; `LOST_STATUS` if JAX ended the child
            because another process of the run is gone; 128 + n for another signal n.
    """
    parent, _, pipe = os.environ.get(_CHILD, "").partition(":")
    if parent == str(os.getppid()):
        _become_child(int(pipe))
        return
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _CHILD: f"{os.getpid()}:{writing}"},
        pass_fds=(writing,),
    )
    os.close(writing)

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    relay = _Relay(reading)
    status = child.wait()
    sys.exit(_report(status, relay.rest()))


def _become_child(pipe: int) -> None:
    """Sends to the pipe what libraries write to standard error past Python."""
    sys.stderr.flush()
    console = os.fdopen(
        os.dup(2), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1
    )
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setStream(console)
    sys.stderr = sys.__stderr__ = console  # type: ignore[misc]
    os.dup2(pipe, 2)
    os.close(pipe)
    # absl has asked for the stacks of all threads, a hundred lines that say nothing about the end.
    faulthandler.enable(file=2, all_threads=False)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()


class _Relay:
    """Passes on to standard error what comes through a pipe, except for the last words.

    Text waits for a moment. If a fatal message of a library follows meanwhile, it waits until the
    end: then it is known whether a short line can replace it.

    Args:
        pipe: the reading end; closed at the end.
    """

    def __init__(self, pipe: int):
        self._pipe = pipe
        self._held = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def rest(self) -> str:
        """Returns the text that has not been passed on; call when the child has ended."""
        self._thread.join(_PIPE_SECONDS)
        return self._held.decode(errors="backslashreplace")

    def _run(self) -> None:
        since = 0.0
        while True:
            waiting = bool(self._held) and not _FATAL.search(self._held)
            seconds = max(0.0, since + _HELD - time.monotonic()) if waiting else None
            if select.select([self._pipe], [], [], seconds)[0]:
                if not self._held:
                    since = time.monotonic()
                if not (text := os.read(self._pipe, 1 << 16)):
                    break
                self._held += text
            else:
                os.write(2, self._held)
                self._held = b""
        os.close(self._pipe)


def _report(status: int, rest: str) -> int:
    """Prints the end of a child and returns the status to exit with.

    Args:
        status: of the child; negative: the signal that ended it.
        rest: the last words of the child and its libraries.
    """
    said = next((line for line in rest.splitlines() if line.startswith(_LOST)), None)
    if status == -signal.SIGABRT and "RegisterTask" in rest:  # while the processes connect
        print(_ABSENT, file=sys.stderr)
        return LOST_STATUS
    if said or (status == -signal.SIGABRT and is_lost_process(rest)):
        reason = rest.partition("absl::Status: ")[2]
        print(said or lost_message(reason or "JAX has ended this one"), file=sys.stderr)
        return LOST_STATUS
    sys.stderr.write(rest)
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    print(f"error: the process was ended by {name}", file=sys.stderr)
    return 128 - status
