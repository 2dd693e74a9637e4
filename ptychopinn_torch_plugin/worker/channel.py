"""The worker's connection to the parent: messages out, one request to stop in."""

from __future__ import annotations

import os
import threading
from multiprocessing.connection import Connection
from typing import Any

from .messages import Message


class StopFlag:
    """Flag that is set once, from any thread or signal handler; it uses no lock that a signal could interrupt."""

    def __init__(self) -> None:
        """Begin unset."""
        self._is_set = False

    def set(self) -> None:
        """Request the end of the work."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the work shall end."""
        return self._is_set


class Channel:
    """Connection that sends messages to the parent; safe to use from several threads.

    While the pipe is full, ``send`` blocks until the parent reads. When the parent has closed its end, messages are
    dropped and the stop flag is set. Processes forked by the work send nothing.
    """

    def __init__(self, connection: Connection[Any, Any], stop: StopFlag) -> None:
        """Send over ``connection``; set ``stop`` when the parent no longer reads."""
        self._connection = connection
        self._stop = stop
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def send(self, message: Message) -> None:
        """Send ``message`` to the parent."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            try:
                self._connection.send(message)
            except OSError:
                self._stop.set()

    def close(self) -> None:
        """Close the pipe; later messages are dropped."""
        with self._lock:
            self._connection.close()
