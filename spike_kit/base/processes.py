"""Processes for work that must not share this one's memory, threads or end; outputs that nobody reads any more."""

import os
import select
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

_ASK_SECONDS = 1.0
"""Time between two requests to end."""


def fresh_process() -> ProcessPoolExecutor:
    """Return a pool of one process that shares nothing with this one, and ends soon after it, however it ended.

    A training in it writes its state before.
    """
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Let this process end when its parent has, which a worker that waits for work would never notice."""
    if parent := parent_process():
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    """Ask again and again: a training answers the first SIGTERM by writing its state, what comes after it by ending."""
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ASK_SECONDS)


def leave_closed_outputs() -> bool:
    """Let outputs that nobody reads end nowhere, or Python fails at its exit; whether there were any."""
    found = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        watch = select.poll()
        watch.register(stream, 0)  # asks for nothing: only errors are told
        if watch.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            found = True
    return found
