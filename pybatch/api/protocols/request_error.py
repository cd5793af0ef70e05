"""What is wrong with a request."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that is not proper. code: in the words of OpenAI's API, such as unknown_parameter. param: the parameter
    at fault, if it is one."""

    def __init__(self, message: str, code: str = "invalid_request", param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
