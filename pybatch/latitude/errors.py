"""What Latitude says no to, in words that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pybatch.latitude.access import KEY, Access

TOO_LARGE = 413

REASONS = {
    400: "it takes the request for a wrong one",
    401: f"it does not know the key in {KEY}",
    403: f"the key in {KEY} may not do this",
    404: "it has no such project, data set or trace",
    TOO_LARGE: "it is too large",
    429: "it has had too many requests of this key, also after waiting",
}


class LatitudeError(OSError):
    """Latitude has refused something, or cannot be reached. status: of its answer; None without one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def latitude_errors(access: Access, what: str) -> Iterator[None]:
    """Turns what the SDK raises into a LatitudeError without the key. what: was to be done."""
    import httpx
    import pydantic
    from latitude_sdk.core.api_error import ApiError
    from latitude_sdk.core.parse_error import ParsingError

    try:
        yield
    except (ApiError, ParsingError, pydantic.ValidationError) as error:
        status = getattr(error, "status_code", None) or 0
        if status < 400:
            raise LatitudeError(f"{what}: {access.api_url} answers what Latitude does not") from None
        reason = REASONS.get(status, f"it answers {status}" + (", also after waiting" if status >= 500 else ""))
        said = text_of(getattr(error, "body", None))
        message = f"{what}: {reason}" + (f" ({said:.300})" if said else "")
        raise LatitudeError(access.without_key(message), status) from None
    except httpx.TimeoutException:
        raise LatitudeError(f"{what}: {access.api_url} does not answer in time") from None
    except httpx.HTTPError as error:
        raise LatitudeError(f"{what}: {access.api_url} cannot be reached ({type(error).__name__})") from None


def text_of(body: object) -> str:
    """Errors are {"error": text}."""
    told = body.get("error") if isinstance(body, dict) else getattr(body, "error", body)
    return told if isinstance(told, str) else ""
