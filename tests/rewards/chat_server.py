"""A server of OpenAI's chat protocol on the loopback, which judges by what it is sent.

It stands for a peer: it decodes the PNGs of each request and gives the log-probabilities that its
``judge`` makes of them, as vLLM would of a vision-language model's.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from PIL.Image import Image as PILImage

MODEL = "tiny-vl"


@dataclass
class Asked:
    """One request as the server read it."""

    system: str
    text: str
    images: list[PILImage]
    tree: dict[str, Any]
    token: str | None


def brightness(image: PILImage) -> float:
    """Of the upper left pixel's red, in [0, 1]."""
    return image.getpixel((0, 0))[0] / 255


def ratings(red: float) -> dict[str, float]:
    """Probabilities of 1 to 5 about ``1 + 4 red``, a tenth elsewhere."""
    weights = {str(r): math.exp(-((r - 1 - 4 * red) ** 2)) for r in range(1, 6)}
    total = sum(weights.values()) / 0.9
    return {name: weight / total for name, weight in weights.items()} | {"The": 0.1}


BIAS = 0.7
"""Log-odds that the judge gives the first place."""


def choice(first: float, second: float) -> dict[str, float]:
    share = 1 / (1 + math.exp(-(4 * (first - second) + BIAS)))
    return {" A": share, "B": 1 - share}


def judge(asked: Asked) -> dict[str, float]:
    """Token -> probability."""
    reds = [brightness(image) for image in asked.images]
    return choice(*reds) if len(reds) == 2 else ratings(reds[0])


@dataclass
class ChatServer:
    judge: Callable[[Asked], Mapping[str, float]] = judge
    deed: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
    """Does something else than to answer, and says whether it did."""
    answers_as: str = MODEL
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> ChatServer:
        handler = type("Handler", (_Handler,), {"peer": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    peer: ChatServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        send(self, 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.peer.deed(self):
            return
        asked = _read(tree, self.headers.get("Authorization"))
        self.peer.asked.append(asked)
        listed = [
            {"token": token, "logprob": math.log(share), "bytes": list(token.encode())}
            for token, share in self.peer.judge(asked).items()
        ]
        send(self, 200, completion(listed, self.peer.answers_as))

    def log_message(self, format: str, *args: Any) -> None: ...


def _read(tree: dict[str, Any], token: str | None) -> Asked:
    system, user = tree["messages"]
    text, *pictures = user["content"]
    images = []
    for picture in pictures:
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        images.append(Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]))
    return Asked(system["content"], text["text"], images, tree, token)


def completion(listed: list[dict[str, Any]], model: str = MODEL) -> dict[str, Any]:
    best = max(listed, key=lambda entry: entry["logprob"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": best["token"]},
                "logprobs": {"content": [{**best, "top_logprobs": listed}]},
                "finish_reason": "length",
            }
        ],
    }


def send(handler: BaseHTTPRequestHandler, status: int, tree: Any) -> None:
    body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
