"""What the browser tests watch: the bytes that a server sends, and what a page does."""

from __future__ import annotations

from playwright.sync_api import Page


class Recorder:
    """ASGI middleware that keeps every byte the server sends, uncompressed, headers included."""

    def __init__(self, app):
        self.app = app
        self.sent: list[bytes] = []

    async def __call__(self, scope, receive, send):
        async def record(message):
            self.sent += [b": ".join(header) for header in message.get("headers", [])]
            self.sent.append(message.get("body", b""))
            await send(message)

        if scope["type"] == "http":
            headers = [h for h in scope["headers"] if h[0] != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        await self.app(scope, receive, record)


class Watch:
    """Notes what a page asks for, gets and complains about."""

    def __init__(self, page: Page):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )

    def assert_quiet(self, url: str) -> None:
        assert self.complaints == []
        foreign = [r for r in self.requests if not r.startswith((url, "data:", "blob:"))]
        assert foreign == []
