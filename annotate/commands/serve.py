"""``winsome serve``: the labelling app over a studio."""

from __future__ import annotations

import argparse
import contextlib
import errno
import secrets
import socket
from typing import TYPE_CHECKING

from annotate.commands.store import open_studio
from annotate.settings import load_config
from annotate.web.config import ServeConfig

if TYPE_CHECKING:
    from annotate.store import PreferenceStore

HELP = "Serve a studio: designers label and engineers review in the browser."
EXAMPLE = "winsome serve runs/demo/studio --port 7860"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "studio",
        nargs="?",
        default="studio",
        help="folder of the studio, or a database URL (default: studio)",
    )
    parser.add_argument("--images", metavar="PLACE", help="folder or URL where the images lie")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for any (default: 7860)")
    parser.add_argument("--config", metavar="FILE", help="settings, as configs/annotate/serve.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )


def run(args: argparse.Namespace) -> None:
    config = _settings(args)
    listener = _listen(config.host, config.port)
    with listener, open_studio(args.studio, args.images) as store:
        make_first_admin(store)
        _serve(store, config, listener)


def _settings(args: argparse.Namespace) -> ServeConfig:
    given = {name: getattr(args, name) for name in ("host", "port")}
    overrides = [*args.set, *(f"{k}={v}" for k, v in given.items() if v is not None)]
    path = args.config or "configs/annotate/serve.yaml"
    return load_config(ServeConfig, path, overrides)


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound before anything slow starts, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is taken; give another (--port {port + 1}) "
                "or let the system choose (--port 0)"
            ) from error
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def make_first_admin(store: PreferenceStore) -> None:
    """An account for a studio that has none; its password is shown this once and stored nowhere."""
    if store.users():
        return
    password = secrets.token_urlsafe(12)
    store.add_user("admin", password, role="admin")
    print(f"This studio has no users yet. Sign in as admin with the password {password}")
    print("It is shown this once. `winsome store add-user` adds the designers.\n")


def _serve(store: PreferenceStore, config: ServeConfig, listener: socket.socket) -> None:
    import uvicorn

    from annotate.web.app import create_app

    port = listener.getsockname()[1]
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    url = config.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(store, config),
            log_level="warning",
            proxy_headers=True,
            forwarded_allow_ips=config.trusted_proxies,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
    )
    print(f"Winsome is at {url}  (label: {url}/annotate, review: {url}/review)")
    if config.host not in LOOPBACK and not config.public_url:
        print("Others can reach it without TLS: passwords cross the network in the clear.")
    print("Ctrl+C stops it.", flush=True)
    # uvicorn ends its work in order and then passes the interrupt on: here it is no fault.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
