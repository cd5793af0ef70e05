"""Puts a whole file in its place at once, and tells later whether it still is the file that was put there."""

from __future__ import annotations

import errno
import os
import stat
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

SECOND = 10**9  # in nanoseconds
NO_FILE = "a device or a pipe, expected a file"


def publish(path: str, write: Callable[[BinaryIO], None], *, replace: bool, tag: int) -> None:
    """Writes a file beside the path, forces it to the disk and renames it.

    replace: whether it may take another file's place. tag: below 10**9; becomes the nanoseconds of the file's time of
    change, by which it is known until something else writes to it. Nothing has to be noted elsewhere for
    that, which a kill between the note and the rename could make wrong, or a full disk impossible. One process at a
    time may publish a path with a tag; it takes away what a killed one has left beside the path.

    Raises FileExistsError if the file may not be replaced, OSError, with the path as its filename, if it cannot be
    written; nothing is left behind then.
    """
    target = os.path.realpath(path)  # what a link leads to is replaced, not the link
    folder = os.path.dirname(target)
    temporary = None
    try:
        left = temporary_name(target, tag)
        with suppress(FileNotFoundError):
            os.unlink(left)
        mode = mode_of(target)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(left, flags, 0o666 if mode is None else 0o600)  # a new file's are left to the system
        temporary = left
        with open(fd, "wb") as file:
            if mode is not None:
                os.fchmod(fd, mode)
            write(file)
            file.flush()
            stamp(fd, tag)
            os.fsync(fd)
        move(temporary, target, replace=replace)
        temporary = None
        sync_folder(folder)
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def expect_place(path: str) -> None:
    """Raises OSError if no file can be published at the path, as far as can be known before there is one to publish."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        code = errno.EISDIR
    elif os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, NO_FILE, path)
    elif not os.path.isdir(folder):
        code = errno.ENOENT
    elif not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES
    else:
        return
    raise OSError(code, os.strerror(code), path)


def stamp(fd: int, tag: int) -> None:
    changed = time.time_ns() // SECOND * SECOND + tag
    os.utime(fd, ns=(changed, changed))


def temporary_name(target: str, tag: int) -> str:
    """Short, since the target's name may be as long as names can be."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".pybatch-{zlib.crc32(os.fsencode(name)):08x}-{tag}.part")


def changed_at(path: str) -> int | None:
    """When a file was changed, in nanoseconds since 1970; None if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return None


def move(source: str, target: str, *, replace: bool) -> None:
    if replace:
        os.replace(source, target)
        return
    try:
        os.link(source, target)  # which never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def mode_of(target: str) -> int | None:
    """The permissions of the file that is there. What a new one would have is not looked up: to read the umask is to
    set it, for all threads. Raises OSError for a device, which root could replace by a file."""
    try:
        mode = os.stat(target).st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NO_FILE)
    return mode & 0o777


def sync_folder(folder: str) -> None:
    """Forces a rename to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
