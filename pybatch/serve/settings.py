"""How the server behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pybatch.engine.arguments import list_fields, suggest_names
from pybatch.serve.limits import Limits
from pybatch.telemetry.addresses import is_http

MIB = 1 << 20
MOST_BATCHES = 64  # at a time, each on a thread of its own
LOG_LEVELS = ("debug", "info", "warning", "error")


@list_fields
@suggest_names
@dataclass(frozen=True)
class ServerSettings:
    """The arguments of ``pybatch serve`` besides the engine's; names follow vLLM."""

    host: Annotated[str, "The address to listen on; one that other machines can reach needs an API key."] = "127.0.0.1"
    port: Annotated[int, "The port to listen on; 0: any that is free."] = 8000
    uds: Annotated[str | Path | None, "A UNIX socket to listen on instead."] = None
    served_model_name: Annotated[
        list[str] | None, "What requests call the model; may be repeated. Default: what was given as the model."
    ] = None
    data_dir: Annotated[
        str | Path | None,
        "A folder for files and batches, which a server that is started again goes on with. Default: one for each port "
        "in the user's folder for state (~/.local/state/pybatch).",
    ] = None
    max_batch_requests: Annotated[int, "Requests of a batch."] = 50_000
    max_running_batches: Annotated[int, f"Batches that run at the same time, at most {MOST_BATCHES}; others wait."] = 2
    api_key: Annotated[
        list[str] | None,
        "A key that requests must have; may be repeated. The machine's other users can see it: prefer a file, or the "
        "variable PYBATCH_API_KEY.",
    ] = field(default=None, repr=False)
    api_key_file: Annotated[
        str | Path | None,
        "Keys, one a line with a name after it; or, in TOML or JSON, with names and limits of their own.",
    ] = None
    allow_no_key: Annotated[bool, "Let other machines connect though there is no API key."] = False
    metrics_without_key: Annotated[bool, "Let /metrics be read without a key."] = False
    requests_per_minute: Annotated[int | None, "POST requests that each key may send; None: any number."] = None
    tokens_per_minute: Annotated[int | None, "Tokens of prompts and answers for each key; None: any number."] = None
    max_concurrent_requests: Annotated[int | None, "Requests of each key at a time; None: any number."] = None
    request_timeout: Annotated[
        float | None, "Seconds after which a request is aborted, with 504; None: as long as its client waits."
    ] = None
    shutdown_timeout: Annotated[
        float, "Seconds that requests have to end after SIGTERM or Ctrl-C, before they are aborted."
    ] = 20.0
    max_body_size: Annotated[int, "Bytes of a request's body."] = 32 * MIB
    max_file_size: Annotated[int, "Bytes of an uploaded file, or of a batch in one request."] = 256 * MIB
    allowed_origins: Annotated[
        list[str] | None, "Origins whose pages may use the server from a browser; may be repeated; '*': all."
    ] = None
    ssl_certfile: Annotated[str | Path | None, "A TLS certificate (PEM), with its chain: serves https."] = None
    ssl_keyfile: Annotated[
        str | Path | None, "The certificate's key, without a password. Default: in the same file."
    ] = None
    log_level: Annotated[
        str, "The lowest level of the log on stderr: debug, info (a line for each request), warning or error."
    ] = "info"
    otlp_traces_endpoint: Annotated[
        str | None,
        "Where OpenTelemetry traces go, by OTLP over HTTP, such as http://localhost:4318/v1/traces; needs the extra "
        "traces.",
    ] = None
    latitude: Annotated[
        str | None,
        "A project of Latitude where traces go; needs the extra latitude, and a key in LATITUDE_API_KEY.",
    ] = None
    profile: Annotated[
        str | Path | None,
        "A folder for profiles of the engine's steps: POST /start_profile and /stop_profile record them.",
    ] = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected a number from 0 to 65535, got {self.port}")
        for name in ("max_body_size", "max_file_size", "max_batch_requests", "max_running_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.max_running_batches > MOST_BATCHES:
            raise ValueError(f"max_running_batches: expected at most {MOST_BATCHES}, got {self.max_running_batches}")
        if self.request_timeout is not None and not self.request_timeout > 0:
            raise ValueError(f"request_timeout: expected more than 0 seconds, got {self.request_timeout}")
        if not self.shutdown_timeout >= 0:
            raise ValueError(f"shutdown_timeout: expected at least 0 seconds, got {self.shutdown_timeout}")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_certfile: expected one, since ssl_keyfile is given")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level: expected one of {', '.join(LOG_LEVELS)}, got {self.log_level!r}")
        endpoint = self.otlp_traces_endpoint
        if endpoint is not None and not is_http(endpoint):
            raise ValueError(f"otlp_traces_endpoint: expected an http or https address, got {endpoint!r:.200}")
        _ = self.limits

    @property
    def sends_traces(self) -> bool:
        return self.otlp_traces_endpoint is not None or self.latitude is not None

    @property
    def limits(self) -> Limits:
        """Of each key that has none of its own, or of all requests together where there are no keys."""
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent_requests)
