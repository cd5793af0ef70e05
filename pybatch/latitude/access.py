"""Which project of Latitude is meant, where it is, and the key: from the environment alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pybatch.telemetry.addresses import is_http

if TYPE_CHECKING:
    from pybatch.telemetry.sender import SpanSender

KEY = "LATITUDE_API_KEY"
PROJECT = "LATITUDE_PROJECT_SLUG"
API_URL = "LATITUDE_API_URL"
TELEMETRY_URL = "LATITUDE_TELEMETRY_URL"
DEFAULTS = {API_URL: "https://api.latitude.so", TELEMETRY_URL: "https://ingest.latitude.so"}

SLUG = re.compile(r"[\w.~-]+", re.ASCII)


@dataclass(frozen=True)
class Access:
    """project: its slug. api_key: is in no text that is made of this. api_url, telemetry_url: without a slash at the
    end."""

    project: str
    api_key: str = field(repr=False)
    api_url: str = DEFAULTS[API_URL]
    telemetry_url: str = DEFAULTS[TELEMETRY_URL]

    @classmethod
    def from_environment(cls, project: str | None = None, environ: Mapping[str, str] = os.environ) -> Self:
        """project: None takes LATITUDE_PROJECT_SLUG. Raises ValueError, naming what is missing or wrong."""
        urls = (base_url(environ, name) for name in DEFAULTS)
        return cls(project_slug(project or environ.get(PROJECT)), api_key(environ), *urls)

    def without_key(self, text: str) -> str:
        """The text, which may be a server's, in a form that may be shown."""
        return text.replace(self.api_key, "[the key]")


def project_slug(project: str | None) -> str:
    if project is None:
        raise ValueError(f"latitude: expected the slug of a project, as PROJECT/DATASET, --latitude or in {PROJECT}")
    return expect_slug("latitude", "a project", project)


def expect_slug(name: str, of: str, slug: str) -> str:
    """Raises ValueError."""
    if not SLUG.fullmatch(slug):
        raise ValueError(f"{name}: expected the slug of {of}, such as my-name, got {slug!r:.80}")
    return slug


def api_key(environ: Mapping[str, str]) -> str:
    key = environ.get(KEY, "").strip()
    if not key:
        raise ValueError(f"{KEY}: expected an API key of Latitude in this variable")
    if not (key.isascii() and key.isprintable() and " " not in key):  # which no header could carry
        raise ValueError(f"{KEY}: expected an API key of Latitude, got text with blanks or other characters")
    return key


def base_url(environ: Mapping[str, str], name: str) -> str:
    url = environ.get(name) or DEFAULTS[name]
    if not is_http(url) or "@" in urlsplit(url).netloc:
        raise ValueError(f"{name}: expected an http or https address without a password, got one that is none")
    return url.rstrip("/")


def trace_sender(access: Access, tell: Callable[[str], object]) -> SpanSender:
    """tell: as SpanSender's."""
    from pybatch.telemetry.sender import SpanSender

    headers = {"Authorization": f"Bearer {access.api_key}", "X-Latitude-Project": access.project}
    return SpanSender(f"{access.telemetry_url}/v1/traces", headers, tell)
