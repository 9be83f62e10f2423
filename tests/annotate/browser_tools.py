"""What the browser tests share: a server, a designer at a page, and what both do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from web_studio import PASSWORD

DESKTOP = {"width": 1280, "height": 800}
IMAGES = Path(__file__).parents[2] / "docs" / "images"
expect.set_options(timeout=20_000)


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


@contextmanager
def served(app) -> Iterator[str]:
    """The address of a running server."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)


def open_page(browser: Browser, url: str, name: str, **options) -> tuple[Page, Watch]:
    """A page on which ``name`` has signed in with the keyboard and sees a task."""
    context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB", **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    watch = Watch(page)
    page.goto(f"{url}/annotate")
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    wait_for_images(page)
    return page, watch


def wait_for_images(page: Page) -> None:
    page.wait_for_selector(".ws[data-state=task]")
    expect(page.locator(".ws-card:not([data-loaded])")).to_have_count(0)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def submit(page: Page, done: str) -> None:
    """Press Enter and wait until the progress reads ``done``."""
    expect(page.locator(".ws-submit")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page.locator(".ws-count")).to_have_text(done)


def marks(page: Page) -> dict[str, str]:
    """Letter -> mark, of the marked candidates."""
    cards = page.locator(".ws-card[data-mark]")
    return {
        card.locator(".ws-letter").inner_text(): card.get_attribute("data-mark")
        for card in cards.all()
    }


def serious(page: Page) -> list[str]:
    """What axe-core calls a serious or critical fault of accessibility."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def save_picture(page: Page, name: str, tmp_path: Path) -> None:
    folder = IMAGES if os.environ.get("WINSOME_SCREENSHOTS") == "1" else tmp_path
    page.mouse.move(1, 1)
    picture = folder / f"{name}.png"
    page.screenshot(path=picture, animations="disabled")
    assert picture.stat().st_size > 10_000
    if folder == IMAGES:  # 256 colours are enough for a document, at a third of the size
        with Image.open(picture) as whole:
            few = whole.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(picture, optimize=True)
