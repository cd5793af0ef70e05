"""pybatch serve: the server."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pybatch.cli.command import (
    NOTHING_ANSWERED,
    CommandError,
    UsageError,
    leave_deleted_folder,
    loading_errors,
    named,
    stderr,
    tell_of,
    usage_errors,
)
from pybatch.cli.flags import EngineFlags, Given, argument, flags_of, option, takes
from pybatch.cli.signals import ending_at_once, ending_in_order
from pybatch.engine.user_weights import read_weights
from pybatch.latitude.access import Access
from pybatch.machine.folders import make_folder
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
    context: typer.Context,
    model_tag: Annotated[str | None, argument("The model, as --model has it.", "MODEL")] = None,
    *,
    server: ServerFlags,
    engine: EngineFlags,
) -> None:
    """Serve a model over HTTP, in the protocols of OpenAI and Anthropic.

    SIGTERM and Ctrl-C let requests end; a second one does not.

    Exit code: 0, after SIGTERM or Ctrl-C; otherwise as pybatch run's.
    """
    leave_deleted_folder()
    arguments: dict[str, Any] = {"max_queued": MOST_QUEUED, **named(engine, model_tag, context).given()}
    with usage_errors():
        settings = ServerSettings(**server.given())
        if settings.profile is not None:
            make_folder("profile", Path(settings.profile))
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
                with ending_at_once(NOTHING_ANSWERED), loading_errors(arguments["model"]):
                    from pybatch.api.async_llm import AsyncLLM

                    llm = AsyncLLM(**arguments)
                    tell_of(llm.session, arguments["model"])
                with closing(llm), ending_in_order("Ended at once: requests that ran got no answer.") as stop:
                    announce = partial(announce_url, str(arguments["model"]))
                    try:
                        run.run(llm, settings, keys, bound, storage, announce=announce, stopping=stop.requested)
                    except run.EngineEndedError as error:
                        raise CommandError(f"serve: {error}") from error


def announce_url(model: str, url: str) -> None:
    stderr.print(f"Serving {model} at {url}")
