"""Settings of the web app (`configs/annotate/serve.yaml`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from annotate.settings import Config


class LoginThrottle(Config):
    """How many wrong passwords are taken before a pause."""

    max_failures: int = Field(default=5, ge=1)
    """Wrong passwords for one name from one address within ``window_s``."""
    max_failures_per_address: int = Field(default=30, ge=1)
    """Wrong passwords from one address, whatever the name; a whole office may share one."""
    window_s: float = Field(default=300.0, gt=0)
    """Seconds until a failure is forgotten."""


class ServeConfig(Config):
    """One labelling server."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` is every one of this machine."""
    port: int = Field(default=7860, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    public_url: str | None = None
    """Where browsers find the app when a proxy stands before it, e.g. ``https://label.example.com``.
    Requests that change something must come from there. None: from the host they are sent to."""
    trusted_proxies: str = "127.0.0.1"
    """Addresses whose ``X-Forwarded-*`` headers are believed, separated by commas."""
    secure_cookie: Literal["auto", "always"] = "auto"
    """``auto``: the session cookie is limited to TLS when the app is reached over TLS."""
    language: Literal["auto", "en", "zh"] = "auto"
    """First language of a page; ``auto`` asks the browser. Each user can change it."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Larger requests are refused. A pick has about 1 kB."""
    login: LoginThrottle = LoginThrottle()
    """Limits on wrong passwords."""
