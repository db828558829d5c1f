"""Whatever bbjax writes, a path holds the old file or the new one."""

import contextlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import bbjax as bb
from bbjax.files import atomic
from bbjax.reporting import draw_graph
from tests.support.files import MASKS, PARAMS, UNITS

fcntl = pytest.importorskip("fcntl")

REPORT = bb.report(MASKS, UNITS)
WRITERS = {
    "save": (".safetensors", lambda path: bb.save(path, PARAMS, MASKS)),
    "save_masks": (".safetensors", lambda path: bb.save_masks(path, MASKS)),
    "page": (".html", REPORT.save),
    "numbers": (".json", REPORT.save),
    "report": (".html", lambda path: bb.report(MASKS, UNITS, file=path)),
    "draw_graph": (".svg", lambda path: draw_graph(TRACED, path)),
}


def _traced():
    def net(params, x):
        return jnp.tanh(x @ params["up"]) @ params["down"]

    params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
    return bb.trace(net, params, jnp.ones((5, 3)))


TRACED = _traced()
each_writer = pytest.mark.parametrize("end, write", WRITERS.values(), ids=WRITERS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def left_behind(path, data=b"half"):
    """A temporary file of a killed save of a path."""
    left = path.with_name(f"{atomic._start(path)}{os.urandom(8).hex()}.tmp")
    left.write_bytes(data)
    return left


# The old file or the new one -----------------------------------------------------
@contextlib.contextmanager
def full_disk(monkeypatch, room=10):
    """Files take a few bytes more, then the disk is full."""
    real = os.fdopen

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() >= room:
                raise OSError(28, "No space left on device")
            return super().write(memoryview(data)[: room - self.tell()])

    def opened(descriptor, mode="r", *args, **kwargs):
        if mode == "wb":
            return io.BufferedWriter(Full(descriptor, "w"))
        return real(descriptor, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", opened)
        yield


@each_writer
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, end, write):
    path = tmp_path / f"kept{end}"
    path.write_bytes(b"old")
    with full_disk(monkeypatch), pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"old" and names(tmp_path) == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_file_object_on_a_full_disk_raises():
    with open("/dev/full", "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            bb.save(file, PARAMS)


@each_writer
def test_a_writer_that_fails_at_the_last_moment_leaves_the_old_file(
    tmp_path, monkeypatch, end, write
):
    path = tmp_path / f"kept{end}"
    path.write_bytes(b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_bytes() == b"old" and names(tmp_path) == [path.name]


def test_file_and_folder_are_synced(tmp_path, monkeypatch):
    kinds, real = [], os.fsync

    def fsync(descriptor):
        kinds.append(stat.S_IFMT(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write(tmp_path / "file", b"new")
    assert kinds == [stat.S_IFREG, stat.S_IFDIR]


@pytest.mark.parametrize("number, hidden", [(22, True), (5, False)])
def test_a_folder_that_cannot_be_synced_is_an_error_only_if_the_disk_fails(
    tmp_path, monkeypatch, number, hidden
):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "sync")

    monkeypatch.setattr(os, "fsync", fsync)
    expected = contextlib.nullcontext() if hidden else pytest.raises(OSError)
    with expected:
        atomic.write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


# Short writes --------------------------------------------------------------------
class Short(io.RawIOBase):
    """Takes a few bytes at a time, up to a limit."""

    def __init__(self, most=None):
        self.data, self.most = b"", most

    def writable(self):
        return True

    def write(self, data):
        room = 7 if self.most is None else min(7, self.most - len(self.data))
        if room == 0:
            return None
        self.data += bytes(data[:room])
        return min(room, len(data))


def test_short_writes_of_a_file_object_are_continued():
    whole, file = io.BytesIO(), Short()
    bb.save(whole, PARAMS, MASKS)
    bb.save(file, PARAMS, MASKS)
    assert file.data == whole.getvalue()


@pytest.mark.parametrize("most", [0, 20])
def test_a_file_object_that_takes_no_more_is_an_error(most):
    with pytest.raises(OSError, match=rf"takes \d+ bytes, it took {most}; pass a path"):
        bb.save(Short(most), PARAMS)


def test_a_file_object_that_does_not_count_is_given_everything():
    taken = []

    class Plain:
        def write(self, data):
            taken.append(bytes(data))

    atomic.write(Plain(), b"all of it")
    assert taken == [b"all of it"]


# What is at the path -------------------------------------------------------------
@each_writer
def test_permission_bits_stay(tmp_path, end, write):
    path = tmp_path / f"file{end}"
    for mode in (0o640, 0o600, 0o755, 0o666):
        path.write_bytes(b"old")
        path.chmod(mode)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.read_bytes() != b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    atomic.write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


@each_writer
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
def test_links_are_followed(tmp_path, end, write, there):
    inside = tmp_path / "inside"
    inside.mkdir()
    target, link = inside / f"v1{end}", tmp_path / f"latest{end}"
    if there:
        target.write_bytes(b"old")
    first = tmp_path / "between"
    first.symlink_to(Path("inside") / target.name)
    link.symlink_to(first)
    write(link)
    assert link.is_symlink() and first.is_symlink() and not target.is_symlink()
    assert target.read_bytes() not in (b"", b"old")
    assert names(inside) == [target.name]


def test_links_in_a_circle_are_the_usual_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        atomic.write(tmp_path / "a", b"new")


@each_writer
@pytest.mark.parametrize("linked", [False, True], ids=["", "linked"])
def test_what_is_no_regular_file_is_refused(tmp_path, end, write, linked):
    path = tmp_path / f"odd{end}"
    made = {"a folder": os.mkdir, "a pipe": os.mkfifo}
    if os.geteuid() == 0:
        made["a device"] = lambda p: os.mknod(p, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for kind, make in made.items():
        try:
            make(path)
        except PermissionError:  # a container without the right to make devices
            continue
        before, named = path.lstat(), path
        if linked:
            named = tmp_path / f"link{end}"
            named.symlink_to(path)
        with pytest.raises(ValueError, match=f"a regular file, got .*which is {kind};"):
            write(named)
        assert path.lstat() == before
        named.unlink() if linked else None
        path.rmdir() if kind == "a folder" else path.unlink()
        assert names(tmp_path) == []


def test_names_up_to_the_limit_of_the_file_system_work(tmp_path):
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    for name in ("x" * (most - 12) + ".safetensors", "ü" * (most // 2)):
        bb.save(tmp_path / name, PARAMS)
        assert names(tmp_path) == [name]
        assert bb.load(tmp_path / name).params.keys() == PARAMS.keys()
        (tmp_path / name).unlink()
    with pytest.raises(OSError, match="too long"):
        bb.save(tmp_path / ("x" * (most + 1)), PARAMS)
    assert names(tmp_path) == []


@each_writer
def test_a_folder_that_is_not_there_is_named(tmp_path, end, write):
    message = f"expected a folder at '.*none' for 'file{end}', got none; make it first"
    with pytest.raises(FileNotFoundError, match=message):
        write(tmp_path / "none" / f"file{end}")


# Temporary files -----------------------------------------------------------------
def test_what_a_killed_save_left_is_removed_by_the_next_of_the_same_target(tmp_path):
    path = tmp_path / "model.safetensors"
    mine = [left_behind(path) for _ in range(3)]
    other = left_behind(tmp_path / "other.safetensors")
    assert all(left.name.startswith(".bbjax-") for left in mine)
    bb.save(path, PARAMS)
    assert names(tmp_path) == sorted([path.name, other.name])
    bb.save(tmp_path / "link", PARAMS)
    bb.save(tmp_path / "other.safetensors", PARAMS)
    assert not other.exists()


def test_the_temporary_file_of_a_running_save_stays(tmp_path):
    path = tmp_path / "model.safetensors"
    running = left_behind(path)
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        bb.save(path, PARAMS)
        assert running.exists()
    bb.save(path, PARAMS)
    assert not running.exists()


def test_a_save_whose_temporary_file_was_taken_for_left_behind_starts_again(
    tmp_path, monkeypatch
):
    real, taken = atomic._lock, []

    def lock(stream):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        real(stream)

    monkeypatch.setattr(atomic, "_lock", lock)
    atomic.write(tmp_path / "file", b"new")
    assert taken and names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


SAVES = """
import runpy, sys
module, path, sign = sys.argv[1:]
write = runpy.run_path(module)["write"]
for size in range(1, 200):
    write(path, sign.encode() * size * 100)
"""


def test_saves_at_the_same_time_leave_one_whole_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    running = [
        subprocess.Popen([sys.executable, "-c", SAVES, atomic.__file__, path, sign])
        for sign in "abc"
    ]
    seen = set()
    while any(process.poll() is None for process in running):
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            seen.add(data[:1])
            assert len(data) % 100 == 0 and len(set(data)) == 1
    assert [process.returncode for process in running] == [0, 0, 0]
    assert names(tmp_path) == ["file"] and seen


# Names of pictures ---------------------------------------------------------------
@pytest.mark.parametrize("name", ["graph.png", "graph.pdf", "graph", "graph.svg.gz"])
def test_a_drawing_is_not_written_under_the_name_of_another_format(tmp_path, name):
    message = r"a drawing to end in \.svg, got '.*graph.*'; the drawing is an SVG"
    with pytest.raises(ValueError, match=message):
        draw_graph(TRACED, tmp_path / name)
    assert names(tmp_path) == []
    draw_graph(TRACED, tmp_path / "graph.SVG")
