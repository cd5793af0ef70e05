"""The flags of what goes to Latitude."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pybatch.cli.command import stderr, usage_errors
from pybatch.cli.flags import Given, option
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.jobs.job import Job
    from pybatch.prompts.prompt import Prompt
    from pybatch.tune.cost import Prices

latitude = partial(option, "Latitude")


@dataclass
class LatitudeFlags(Given):
    """The arguments of Tracing."""

    latitude: Annotated[
        str | None,
        latitude(
            "Send a trace of each row to this project of Latitude; the key is taken from LATITUDE_API_KEY.",
            metavar="PROJECT",
        ),
    ] = None
    latitude_session: Annotated[
        str | None, latitude("The session of a row's trace, with {field} where a row's field goes. Default: its own.")
    ] = None
    latitude_tag: Annotated[list[str] | None, latitude("A tag of all traces; may be repeated.")] = None
    latitude_metadata: Annotated[
        list[str] | None,
        latitude("Metadata of the traces, with {field} as in the session; may be repeated.", metavar="NAME=TEXT"),
    ] = None
    latitude_content: Annotated[
        bool | None,
        latitude("Send what prompts and answers say, too. Default: counts, times and labels.", "--latitude-content"),
    ] = None

    def traced(
        self, model: str, prices: Prices, prompt: Prompt | None = None
    ) -> Callable[[Job], AbstractContextManager[object]]:
        """What sends a job's traces, if that was asked for. prompt: that its rows fill in. Raises UsageError."""
        if self.latitude is None:
            with usage_errors():
                for flag in self.given():
                    raise ValueError(f"{flag}: is for traces, which go to a project: --latitude PROJECT")
            return lambda job: nullcontext()
        with usage_errors():
            from pybatch.jobs.traced import traced
            from pybatch.latitude.tracing import Tracing

            tracing = Tracing(
                self.latitude,
                session=self.latitude_session,
                tags=self.latitude_tag or (),
                metadata=Tracing.parse_metadata(self.latitude_metadata or ()),
                prompt=None if prompt is None else prompt.name,
                prompt_version=None if prompt is None else prompt.version,
                content=bool(self.latitude_content),
            )
            return traced(tracing, model, prices.per_hour, tell)


def tell(message: str) -> None:
    stderr.print(printable(f"Latitude: {message}"))
