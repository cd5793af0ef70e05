"""pybatch serve: the server."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import typer

from pybatch.cli.command import CommandError, UsageError, leave_deleted_folder, loading_errors, stderr, usage_errors
from pybatch.cli.flags import EngineFlags, Given, flags_of, option, takes
from pybatch.cli.signals import ending_in_order
from pybatch.engine.user_weights import read_weights
from pybatch.latitude.access import Access
from pybatch.serve.guard.binding import bind
from pybatch.serve.guard.keys import load_keys
from pybatch.serve.settings import ServerSettings

MOST_QUEUED = 4096


@flags_of(ServerSettings, panel=partial(option, "Server"))
@dataclass
class ServerFlags(Given):
    """The arguments of ServerSettings."""


@takes(server=ServerFlags, engine=EngineFlags)
def serve(
    model_tag: Annotated[str | None, typer.Argument(help="The model, as --model has it.", metavar="MODEL")] = None,
    *,
    server: ServerFlags,
    engine: EngineFlags,
) -> None:
    """Serve a model over HTTP, in the protocols of OpenAI and Anthropic."""
    leave_deleted_folder()
    arguments: dict[str, Any] = {"max_queued": MOST_QUEUED, **engine.given()}
    if model_tag is not None:
        arguments["model"] = model_tag
    with usage_errors():
        settings = ServerSettings(**server.given())
        if settings.latitude is not None:
            Access.from_environment(settings.latitude)
        keys = load_keys(settings.api_key or (), settings.api_key_file, os.environ, settings.limits)
        arguments["user_weights"] = {**keys.weights, **read_weights(arguments.get("user_weights") or {})} or None
        with bind(settings, keys) as bound:
            try:
                from pybatch.serve import run
                from pybatch.serve.store import open_storage

                if settings.sends_traces:
                    import pybatch.serve.monitoring.traces  # noqa: F401
            except ModuleNotFoundError as error:
                extra = "traces" if str(error.name).startswith(("opentelemetry", "requests")) else "serve"
                raise UsageError(f"serve: needs the package {error.name}: pip install 'pybatch[{extra}]'") from None
            with open_storage(settings) as storage:
                with loading_errors(arguments["model"]):
                    from pybatch.api.async_llm import AsyncLLM

                    llm = AsyncLLM(**arguments)
                with closing(llm), ending_in_order() as stop:
                    announce = partial(announce_url, str(arguments["model"]))
                    try:
                        run.run(llm, settings, keys, bound, storage, announce=announce, stopping=stop.requested)
                    except run.EngineEndedError as error:
                        raise CommandError(f"serve: {error}") from error


def announce_url(model: str, url: str) -> None:
    stderr.print(f"Serving {model} at {url}")
