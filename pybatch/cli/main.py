"""The entry point of the pybatch command: streams, signals and exit codes."""

from __future__ import annotations

import atexit
import signal
import sys

from pybatch.cli import exit_codes
from pybatch.cli.signals import ending_at_once, exit_code
from pybatch.cli.streams import flush_output, printable, standard_streams_mended


def main() -> None:
    """Runs the command that sys.argv names and exits; exit_codes.py lists the codes."""
    with standard_streams_mended(), ending_at_once():
        code = run_command()
        try:
            flush_output()
        except BrokenPipeError:  # without a word, as other tools
            code = exit_codes.BROKEN_PIPE
        except OSError as error:
            if code == exit_codes.OK:
                complain(f"standard output: {error.strerror}")
                code = exit_codes.FAILED
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback out of the interpreter's own end
    sys.exit(code)


def run_command() -> int:
    """Returns the exit code."""
    import typer  # here, where a Ctrl-C during the import prints no traceback

    from pybatch.cli.app import app
    from pybatch.cli.command import of_file

    try:
        return int(app(prog_name="pybatch", standalone_mode=False) or exit_codes.OK)
    except typer.TyperException as error:
        if message := error.format_message():
            complain(message)
        return int(error.exit_code)
    except typer.Abort:
        return exit_code(signal.SIGINT)
    except SystemExit as end:  # typer's, where standard output is gone
        return int(end.code or exit_codes.OK)
    except OSError as error:
        complain(of_file(error) if error.filename is not None else f"standard output: {error.strerror or error}")
        return exit_codes.FAILED


def complain(message: str) -> None:
    print(f"pybatch: {printable(message)}", file=sys.stderr)
