"""The server's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pybatch.machine.folders import make_folder, of_home
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store.batches import BatchStore
from pybatch.serve.store.database import Database
from pybatch.serve.store.files import FileStore


class Storage:
    """Files and batches in a folder, which this process alone has until it is closed.

    Raises OSError or ValueError if the folder cannot be used or is of another version of pybatch, BlockingIOError if
    another server has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder("data_dir", folder, mode=0o700)  # it has what clients ask
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._database = Database(folder / "server.sqlite3")
        except BlockingIOError:
            os.close(self._lock)
            reason = "another server has this folder; --data-dir gives this one its own"
            raise BlockingIOError(errno.EWOULDBLOCK, reason, str(folder)) from None
        except BaseException:
            os.close(self._lock)
            raise
        self.files, self.batches = FileStore(self._database, folder), BatchStore(self._database, folder)
        self.batches.sweep()
        self.files.sweep()

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def open_storage(settings: ServerSettings) -> Iterator[Storage]:
    """Where the settings say, or else in a folder that belongs to the server's address, so that it finds its files and
    batches again and two servers do not get in each other's way. A port that is any has a temporary folder.

    Raises what Storage raises.
    """
    address = Path(settings.uds).name if settings.uds is not None else settings.port
    if settings.data_dir is not None:
        with Storage(of_home(settings.data_dir)) as storage:
            yield storage
    elif address:
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        with Storage(of_home(state) / "pybatch" / f"server-{address}") as storage:
            yield storage
    else:
        with tempfile.TemporaryDirectory(prefix="pybatch-server-") as folder, Storage(Path(folder)) as storage:
            yield storage
