"""Where the server listens."""

from __future__ import annotations

import http.client
import resource
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from local_server import local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard import binding
from pybatch.serve.guard.binding import bind, raise_open_files_limit
from pybatch.serve.guard.keys import Keys, load_keys
from pybatch.serve.limits import Limits
from pybatch.serve.settings import ServerSettings

NONE, ONE = Keys(), load_keys(["sk-a"], None, {}, Limits())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    bind(ServerSettings(host=host, port=0), NONE).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_other_machines_need_a_key_or_a_word(host: str) -> None:
    with pytest.raises(ValueError, match=f"host: {host!r} can be reached from other machines: expected an API key"):
        bind(ServerSettings(host=host, port=0), NONE)
    bind(ServerSettings(host=host, port=0), ONE).close()
    bind(ServerSettings(host=host, port=0, allow_no_key=True), NONE).close()


def test_a_host_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match=r"host: 'no\.such\.host\.invalid': "):
        bind(ServerSettings(host="no.such.host.invalid", port=0), NONE)
    for none in ("a" * 300, "a..b"):
        with pytest.raises(ValueError, match="host: expected a name or an address, got 'a"):
            bind(ServerSettings(host=none, port=0), NONE)
    with pytest.raises(OSError, match="Cannot assign requested address") as error:
        bind(ServerSettings(host="192.0.2.1", port=0), ONE)
    assert error.value.filename == "192.0.2.1:0"


def test_tls(llm: AsyncLLM, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=me -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    with local_server(llm, ssl_certfile=cert, ssl_keyfile=key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{server.url}/v1/models", verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/v1/models")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.url.replace('https', 'http')}/v1/models")
    for wrong in (cert, tmp_path / "with-password.pem"):
        if not wrong.exists():
            command = ["openssl", "rsa", "-aes128", "-passout", "pass:x", "-in", key, "-out", wrong]
            subprocess.run(command, check=True, capture_output=True)
        with pytest.raises(ValueError, match="ssl_certfile, ssl_keyfile: cannot use"):
            bind(ServerSettings(port=0, ssl_certfile=cert, ssl_keyfile=wrong), NONE)
    with pytest.raises(FileNotFoundError):
        bind(ServerSettings(port=0, ssl_certfile=tmp_path / "none.pem"), NONE)


class OverPath(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("any.name")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def test_a_unix_socket(llm: AsyncLLM, tmp_path: Path) -> None:
    path = tmp_path / "pybatch.sock"
    with local_server(llm, uds=path) as server:
        assert server.url == f"unix:{path}"
        connection = OverPath(path)
        connection.request("GET", "/v1/models", headers={"Origin": "https://proxied.example"})
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises(OSError, match="Address already in use"):
            bind(ServerSettings(uds=path), NONE)
    assert path.exists()  # as after an end at once
    bind(ServerSettings(uds=path), NONE).close()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match="Address already in use"):
        bind(ServerSettings(uds=file), NONE)
    assert file.read_text() == "mine"


def test_a_client_that_reads_no_more_loses_its_connection(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binding, "UNREAD_SECONDS", 1)
    with local_server(llm) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.bound.getsockname())
        # Answers that it does not read, until no more go into the buffers.
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.settimeout(20)
        with pytest.raises((ConnectionResetError, BrokenPipeError, TimeoutError)) as error:
            send_forever(client, request)
        assert error.type is not TimeoutError
        server.expect_idle()


def send_forever(client: socket.socket, request: bytes) -> None:
    while True:
        client.sendall(request)


def test_as_many_files_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
