"""The command's exit codes. A signal's is 128 and its number: 130 after Ctrl-C, 143 after SIGTERM."""

from signal import SIGPIPE

OK = 0
FAILED_ROWS = 1  # the job is done, and some of its rows have errors
USAGE = 2  # the caller can put it right: arguments, files, the model
FAILED = 3  # a command that could not go on: a step of the engine, a disk, memory
BROKEN_PIPE = 128 + SIGPIPE  # the reader of the output has gone
