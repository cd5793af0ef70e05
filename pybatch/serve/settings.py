"""How the server behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pybatch.engine.arguments import list_fields, suggest_names


@list_fields
@suggest_names
@dataclass(frozen=True)
class ServerSettings:
    """The arguments of ``pybatch serve`` besides the engine's; names follow vLLM."""

    host: Annotated[str, "The address to listen on."] = "127.0.0.1"
    port: Annotated[int, "The port to listen on; 0: any that is free."] = 8000
    served_model_name: Annotated[
        list[str] | None, "What requests call the model; may be repeated. Default: what was given as the model."
    ] = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected a number from 0 to 65535, got {self.port}")
