"""Writes files whole: a path holds the old content or the new one, never a part.

    temporary file beside the target, locked -> all bytes -> fsync -> moved to the
    target -> fsync of the folder

A save that is killed leaves a temporary file behind, `.bbjax-<target>-<random>.tmp`,
where `<target>` is a digest of the target's name: so it is recognised, and no longer
than a name may be. The next save of the same target removes it. A running save holds a
lock on its temporary file, which the system gives up when the process ends; so files of
running saves stay. Where there are no such locks (Windows, some network file systems),
temporary files of killed saves stay, too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

File = str | os.PathLike[str] | BinaryIO

_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of folders, on some file systems


def write(file: File, data: bytes) -> None:
    """Writes all bytes, or none of them and an error.

    Args:
      file: a path, or a binary file open for writing. The file at a path keeps its
        permission bits and, where the system allows it, its owner. Symbolic links are
        followed: the link stays, and the file that it names is replaced.
      data: the whole content.

    Raises:
      FileNotFoundError: the folder of the path is missing.
      ValueError: the path is no regular file (a folder, a device, a pipe).
      OSError: the system cannot write all bytes, as on a full disk. A path holds what
        it held before.

    Example:
      >>> file = io.BytesIO()
      >>> write(file, b"all")
      >>> file.getvalue()
      b'all'
    """
    if hasattr(file, "write"):
        _write_all(cast("BinaryIO", file), data)
        return
    target, before = _target(Path(file))
    _remove_left(target)
    with _temporary(target) as (stream, beside):
        if before is not None:  # before it holds anything that others may not read
            _keep_access(beside, before)
        stream.write(data)  # buffered: continues short writes
        stream.flush()
        os.fsync(stream.fileno())
        if fcntl is None:  # Windows moves no open file
            stream.close()
        os.replace(beside, target)
    _sync(target.parent)


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """Continues short writes, which unbuffered files make."""
    done = stream.write(data)
    if done is None and not isinstance(stream, io.RawIOBase):
        return  # an object of the user's that does not count
    while (done or 0) < len(data):
        more = stream.write(memoryview(data)[done:])
        if not more:
            raise OSError(
                f"expected a file that takes {len(data)} bytes, it took {done or 0}; "
                "pass a path, or a file that blocks until it can write"
            )
        done = (done or 0) + more


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file that is to be replaced, and what the system says about it if it is."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {str(target.parent)!r} for {target.name!r}, got "
            "none; make it first"
        )
    try:
        before = os.stat(target)
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(before.st_mode):
        raise ValueError(
            f"expected the path of a regular file, got {str(path)!r}, which is "
            f"{_kind(before.st_mode)}; pass another path, or a binary file open for "
            "writing"
        )
    return target, before


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def _keep_access(beside: Path, before: os.stat_result) -> None:
    """Gives a file the permission bits of another; its owner, where that is allowed."""
    now = os.stat(beside)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(PermissionError):
            os.chown(beside, before.st_uid, before.st_gid)
    os.chmod(beside, stat.S_IMODE(before.st_mode))


# Temporary files -----------------------------------------------------------------
def _start(target: Path) -> str:
    """How names of the temporary files of a target start: always of one length."""
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:24]
    return f".bbjax-{name}-"


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside the target, locked; removed in the end if it is still there."""
    while True:
        beside = target.with_name(f"{_start(target)}{secrets.token_hex(8)}.tmp")
        with os.fdopen(os.open(beside, _NEW, 0o666), "wb") as stream:
            try:
                _lock(stream)
                # Another save may have locked it first, taken it for left behind and
                # removed it.
                if beside.exists():
                    yield stream, beside
                    return
            finally:
                if fcntl is None:
                    stream.close()
                beside.unlink(missing_ok=True)


def _lock(stream: BinaryIO) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # no locks here: then nothing is removed
            fcntl.flock(stream, fcntl.LOCK_EX)


def _remove_left(target: Path) -> None:
    """Removes temporary files of saves of this target that were killed."""
    if fcntl is None or not os.access(target.parent, os.R_OK):
        return
    start = _start(target)
    names = [n for n in os.listdir(target.parent) if n.startswith(start)]
    for left in map(target.with_name, names):
        # It may be gone by now, be somebody else's, or be locked by a running save.
        with contextlib.suppress(OSError), left.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _sync(folder: Path) -> None:
    """Makes a move within a folder last, also if the power fails."""
    if not hasattr(os, "O_DIRECTORY") or not os.access(folder, os.R_OK):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
