"""How many calls to a server may be in flight, and when the next one may start."""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Limiter:
    """Calls in flight: at most a limit that falls when the server is busy and rises again while it is not.

    The limit is halved on a busy signal (once per wave of calls) and grows by one after as many successes as it
    counts, up to the configured concurrency; a pause the server asks for holds for all calls.

    Parameters
    ----------
    most
        Configured concurrency.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = most
        self.lowest = most
        self._active = 0
        self._successes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._not_before = 0.0
        self._halved_at = 0.0

    @property
    def pause(self) -> float:
        """Seconds left of a pause that the server asked for."""
        return self._not_before - time.monotonic()

    async def enter(self) -> None:
        """Wait for a place."""
        while self._active >= self.limit:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        self._active += 1

    def leave(self) -> None:
        """Give the place back."""
        self._active -= 1
        self._wake()

    def succeeded(self) -> None:
        """Count a success."""
        self._successes += 1
        if self.limit < self.most and self._successes >= self.limit:
            self.limit, self._successes = self.limit + 1, 0
            self._wake()

    def busy(self, started: float, wait: float) -> None:
        """Slow down: a call that started at ``started`` met a busy server, which asks for ``wait`` seconds."""
        now = time.monotonic()
        self._not_before = max(self._not_before, now + wait)
        if started >= self._halved_at:
            self.limit, self._successes = max(1, self.limit // 2), 0
            self.lowest = min(self.lowest, self.limit)
            self._halved_at = now

    def _wake(self) -> None:
        free = self.limit - self._active
        while free > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
