from __future__ import annotations

import pytest

from pybatch.latitude.access import Access
from pybatch.serve.settings import ServerSettings
from pybatch.telemetry.addresses import is_http


@pytest.mark.parametrize("url", ["http://localhost:4318/v1/traces", "https://x.example", "http://[::1]:80/"])
def test_addresses(url: str) -> None:
    assert is_http(url)
    assert ServerSettings(otlp_traces_endpoint=url).otlp_traces_endpoint == url


@pytest.mark.parametrize(
    "url", ["x", "ftp://x", "http://", "https:///x", "http://[::1", "http://a b", "http://x:99999"]
)
def test_what_is_no_address_is_told_at_once(url: str) -> None:
    assert not is_http(url)
    with pytest.raises(ValueError, match="otlp_traces_endpoint: expected an http or https address"):
        ServerSettings(otlp_traces_endpoint=url)
    with pytest.raises(ValueError, match="LATITUDE_API_URL: expected an http or https address"):
        Access.from_environment("project", {"LATITUDE_API_KEY": "key", "LATITUDE_API_URL": url})
