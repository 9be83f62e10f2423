"""A model behind OpenAI's chat protocol, of whose answer only the first token's odds are read."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.service.calls import ClientSettings, ServiceError, call, split_url

__all__ = ["TOP", "ChatClient"]

TOP = 20
"""Tokens whose log-probabilities are asked for: as many as OpenAI's protocol allows."""


class ChatClient:
    """``POST {url}/chat/completions`` with ``logprobs``, by `rewards.service.calls.call`.

    Args:
        url: of the API, e.g. ``http://127.0.0.1:8000/v1``.
        model: as the server names it.
        extra: further fields of each request, such as ``chat_template_kwargs``.

    Raises:
        ServiceError: the server does not answer, or does not serve the model.
        ValueError: the URL is none.
    """

    def __init__(
        self, url: str, model: str, settings: ClientSettings, extra: Mapping[str, Any] | None = None
    ):
        self.url, self._server = url, split_url(url)
        self.model, self.settings, self._extra = model, settings, dict(extra or {})
        self._answered_as: str | None = None
        self._lock = threading.Lock()
        tree = _parse(call(self._server, "GET", "/models", None, settings))
        try:
            served = [str(entry["id"]) for entry in tree["data"]]
        except (TypeError, KeyError):
            raise ServiceError(f"{url}/models does not list models: {tree!r:.200}") from None
        if model not in served:
            raise ServiceError(f"{url} serves {served}, wanted {model!r}")

    def request(self, system: str, user: str, pngs: Sequence[bytes]) -> bytes:
        """The body that asks for one token after the text and the images."""
        pictures = [
            {
                "type": "image_url",
                "image_url": {
                    "url": f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
                },
            }
            for png in pngs
        ]
        tree = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": [{"type": "text", "text": user}, *pictures]},
            ],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP,
            **self._extra,
        }
        return json.dumps(tree, ensure_ascii=False).encode()

    def first_token(self, body: bytes) -> dict[str, float]:
        """Log-probability by token, in nats, of the `TOP` likeliest; tokens written alike are one.

        Raises:
            ServiceError: no answer in time, none of the protocol, or by another model than the
                first answer's.
        """
        answer = call(self._server, "POST", "/chat/completions", body, self.settings)
        tree = _parse(answer)
        try:
            model = str(tree["model"])
            listed = tree["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            mass: dict[str, float] = {}
            for entry in listed:
                token, log_prob = entry["token"], entry["logprob"]
                if isinstance(log_prob, bool) or not isinstance(log_prob, (int, float)):
                    raise TypeError(f"{log_prob!r} is no number")
                mass[token] = mass.get(token, 0.0) + math.exp(log_prob)
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise ServiceError(
                f"no log-probabilities in the answer ({type(error).__name__}: {error}): "
                f"{answer[:200]!r}"
            ) from None
        if not mass or not 0.0 < sum(mass.values()) < 1.001:
            raise ServiceError(f"these are no log-probabilities: {answer[:200]!r}")
        with self._lock:
            self._answered_as = self._answered_as or model
            if model != self._answered_as:
                raise ServiceError(
                    f"answered as {model!r}, the run began with {self._answered_as!r}"
                )
        return {token: math.log(max(share, 1e-300)) for token, share in mass.items()}


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"the answer is not JSON: {error}: {body[:100]!r}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
