"""Where the server listens, and what that asks for."""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
import ssl
import stat
from pathlib import Path

from pybatch.serve.guard.keys import Keys
from pybatch.serve.settings import ServerSettings

KEEPALIVE_SECONDS = 60  # without a word from a client until its system is asked whether it is still there
UNREAD_SECONDS = 120  # that a client leaves unread what was sent to it


def bind(settings: ServerSettings, keys: Keys) -> socket.socket:
    """Before the model is loaded, so that a port in use is told at once.

    Raises OSError; ValueError where others than this machine could connect without a key, or for files of TLS that
    cannot be used.
    """
    check_certificate(settings)
    if settings.uds is not None:
        return bind_path(Path(settings.uds))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        found = socket.getaddrinfo(
            settings.host or None, settings.port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ValueError(f"host: {settings.host!r}: {error.strerror}") from None
    except UnicodeError:  # of the names' encoding
        raise ValueError(f"host: expected a name or an address, got {settings.host!r:.80}") from None
    address = found[0][4]
    if not (keys or settings.allow_no_key or is_loopback(str(address[0]))):
        raise ValueError(
            f"host: {settings.host!r} can be reached from other machines: expected an API key (--api-key-file, or "
            "PYBATCH_API_KEY), or --allow-no-key"
        )
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit these: one whose client has gone without a word, or reads no more, ends.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{settings.host}:{settings.port}") from None
    return bound


def bind_path(path: Path) -> socket.socket:
    """A UNIX socket. What a server that has ended left there is replaced."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            if bound.connect_ex(str(path)) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            path.unlink()
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    return bound


def is_local(bound: socket.socket) -> bool:
    """Whether it is an address that only this machine can reach."""
    return bound.family != socket.AF_UNIX and is_loopback(bound.getsockname()[0])


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def url(settings: ServerSettings, bound: socket.socket) -> str:
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'s' if settings.ssl_certfile else ''}://{host}:{bound.getsockname()[1]}"


def check_certificate(settings: ServerSettings) -> None:
    if settings.ssl_certfile is None:
        return
    files = [Path(each) for each in (settings.ssl_certfile, settings.ssl_keyfile) if each is not None]
    for file in files:
        file.open().close()  # whose error names the file, which that of the ssl module does not
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A key with a password is refused rather than asked for on the terminal.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=lambda: "")
    except ssl.SSLError as error:
        names = " and ".join(map(str, files))
        raise ValueError(f"ssl_certfile, ssl_keyfile: cannot use {names}: {error.reason or error}") from None


def raise_open_files_limit() -> None:
    """To what the system allows: each connection is an open file, and the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft not in (hard, resource.RLIM_INFINITY) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
