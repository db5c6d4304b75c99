"""A small OpenAI-compatible server on 127.0.0.1 that answers without a model: it repeats facts of the prompt.

For trying out everything around an LLM (prompts, cost, resuming, speed) with no key, no network and no weights. Its
profiles are excerpts of the prompts, not prose of a language model, and the name of its model says so.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

MODEL = "loopback-excerpt"
"""Name under which the server answers."""

_WORDS = 90
_HEAD_LIMIT = 64 * 1024


def excerpt(body: dict[str, Any]) -> str:
    """Answer a chat request with the quoted lines of its last message, cut after 90 words."""
    parts: list[str] = []
    left = _WORDS
    for line in str(body["messages"][-1]["content"]).splitlines():
        start = line.find('"')
        if start < 0 or not line.endswith('"'):
            continue
        try:
            quoted = str(json.loads(line[start:])).split()
        except ValueError:
            continue
        if quoted and left > 0:
            parts.append(" ".join(quoted[:left]))
            left -= len(quoted) + 1
    return " and ".join(parts) or "Nothing is known of it."


class LoopbackServer:
    """The server, inside a running event loop; see `LoopbackProcess` for one in a process of its own.

    Parameters
    ----------
    answer
        What makes the text of an answer from the body of a request.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str] = excerpt) -> None:
        self.answer = answer
        self.requests = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listen on a free port of 127.0.0.1; gives the base URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_LIMIT)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0
                )
                await self.respond(head, await reader.readexactly(size), writer)
                await writer.drain()
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            asyncio.CancelledError,
            ConnectionError,
            ValueError,
        ):
            pass
        finally:
            writer.close()

    async def respond(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:  # noqa: ARG002
        """Answer one request; ``head`` are its request line and headers."""
        self.requests += 1
        request = json.loads(body)
        writer.write(response(200, completion(self.answer(request), request)))


def completion(text: str, request: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """Body of a chat completion; tokens are counted as words."""
    asked = sum(len(str(message["content"]).split()) for message in request.get("messages", ()))
    said = len(text.split())
    return {
        "id": "loopback",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model", MODEL),
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


def response(status: int, value: Any, headers: str = "") -> bytes:
    """HTTP response with a JSON body; ``headers`` are further lines, each ending in CRLF."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class LoopbackProcess:
    """The server in a process of its own, from entering the context to leaving it; ends with its parent, too.

    Attributes
    ----------
    base_url
        Where it listens, once entered.
    """

    base_url: str

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start without a ``with`` block (in a notebook); end with `stop`."""
        return self.__enter__()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


async def _main() -> None:
    """Serve until standard input ends."""
    async with LoopbackServer().running() as base_url:
        sys.stdout.write(base_url + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
