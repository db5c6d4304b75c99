"""HTTP connections to a server that is not trusted: bounded responses, no compression, no cookies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Largest response that is read; a profile has a few kilobytes."""


def capped_transport(http: Any, connections: int) -> Any:
    """Transport with so many connections that stops reading a response at `MAX_ANSWER_BYTES` and keeps no cookies.

    Each connection is a pool of its own: the library looks through a whole pool at every request, which costs as much
    as the rest of the call when there are many.
    """

    class Stream(http.AsyncByteStream):
        def __init__(self, stream: Any, release: Callable[[], None]) -> None:
            self._stream, self._release = stream, release

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._stream:
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise http.DecodingError(f"the response is larger than {MAX_ANSWER_BYTES} bytes")
                yield chunk

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._release()

    class Transport(http.AsyncBaseTransport):
        def __init__(self) -> None:
            one = http.Limits(max_connections=1, max_keepalive_connections=1)
            context = http.create_ssl_context()
            self._pools = [http.AsyncHTTPTransport(verify=context, limits=one) for _ in range(connections)]
            self._free = list(self._pools)

        async def handle_async_request(self, request: Any) -> Any:
            pool = self._free.pop()
            release = partial(self._free.append, pool)
            try:
                response = await pool.handle_async_request(request)
            except BaseException:
                release()
                raise
            response.stream = Stream(response.stream, release)
            response.headers.pop("set-cookie", None)
            if response.headers.get("content-encoding", "identity") != "identity":
                await response.aclose()
                raise http.DecodingError("the response is compressed, which was not asked for", request=request)
            return response

        async def aclose(self) -> None:
            for pool in self._pools:
                await pool.aclose()

    return Transport()
