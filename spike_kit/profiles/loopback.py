"""A small OpenAI-compatible server on 127.0.0.1 that answers without a model: it repeats facts of the prompt.

For trying out everything around an LLM (prompts, cost, resuming, speed) with no key, no network and no weights. Its
profiles are excerpts of the prompts, not prose of a language model, and the name of its model says so.
"""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from typing import Any

MODEL = "loopback-excerpt"
"""Name under which the server answers."""

_WORDS = 90


def excerpt(body: dict[str, Any]) -> str:
    """Answer a chat request with the quoted lines of its last message, cut after 90 words."""
    quoted = re.findall(r'("(?:[^"\\]|\\.)*")$', body["messages"][-1]["content"], re.M)
    words = " and ".join(json.loads(line) for line in quoted).split()
    return " ".join(words[:_WORDS]) or "Nothing is known of it."


def completion(text: str, request: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    """Body of a chat completion; tokens are counted as words."""
    asked = sum(len(str(message["content"]).split()) for message in request.get("messages", ()))
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "model": request.get("model", MODEL),
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": asked, "completion_tokens": len(text.split())},
    }


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            request = json.loads(await reader.readexactly(size))
            body = json.dumps(completion(excerpt(request), request)).encode()
            start = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(start.encode() + body)
    writer.close()


class LoopbackProcess(AbstractContextManager["LoopbackProcess"]):
    """The server in a process of its own, until `stop` or the end of a ``with`` block; ends with its parent, too.

    Attributes
    ----------
    base_url
        Where it listens.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def __exit__(self, *_: object) -> None:
        self.stop()


async def _main() -> None:
    """Serve on a free port until standard input ends."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main())
