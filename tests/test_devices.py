"""Devices that are opened beside imports."""

import threading

import jax
import pytest

from vig_jax.devices import open_devices_early


def opening():
    """Returns the threads that open devices."""
    return [thread for thread in threading.enumerate() if thread.name == "open-devices"]


def test_another_thread_opens_the_devices(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def devices():
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(jax, "devices", devices)
    open_devices_early()  # returns before they are open
    assert begun.wait(60)
    (thread,) = opening()
    go_on.set()
    thread.join(60)
    assert not opening()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_is_left_to_the_first_use(monkeypatch, capsys):
    def devices():
        raise RuntimeError("no driver")

    monkeypatch.setattr(jax, "devices", devices)
    open_devices_early()
    for thread in opening():
        thread.join(60)
    assert capsys.readouterr() == ("", "")
