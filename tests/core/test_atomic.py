"""Files are written whole or not at all: by several threads, on a full disk, without memory."""

import concurrent.futures
import errno
import os
import stat
import zipfile

import pytest
from helpers.failing import ERRORS, check_failures
from helpers.ops import random_op

from jax_maddness import load, save
from jax_maddness.core import archive, atomic


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.maddness"


def only_file(path):
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_threads_that_save_one_path_leave_a_whole_file_at_every_moment(rng, path):
    ops = [random_op(rng, 8, codebooks, 5) for codebooks in (1, 2, 3, 4)]
    save(path, ops[0])

    def save_and_load(number):
        save(path, ops[number % 4])
        return load(path).num_codebooks

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(save_and_load, range(64))) <= {1, 2, 3, 4}
    assert only_file(path)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("name", ["write", "flush"])
def test_a_failure_at_any_write_leaves_the_old_file(rng, path, monkeypatch, error, name):
    save(path, random_op(rng, 8, 3, 5))
    op = random_op(rng, 8, 2, 5)
    assert check_failures(path, lambda path: save(path, op), monkeypatch, error, name) >= 1
    assert load(path).num_codebooks == 2


@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
def test_a_failure_of_the_system_leaves_the_old_file(rng, path, monkeypatch, name):
    save(path, random_op(rng, 8, 3, 5))
    before = path.read_bytes()

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error", args[0])

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="Input/output error") as raised:
        save(path, random_op(rng, 8, 2, 5))
    monkeypatch.undo()
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert only_file(path)


def test_only_regular_files_are_replaced_and_read(op, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target, kind in [(tmp_path, "folder"), (tmp_path / "pipe", "device"), ("/dev/null", "device")]:
        with pytest.raises(ValueError, match=f"which is a {kind}.*expected a regular file"):
            save(target, op)
        with pytest.raises(ValueError, match=f"which is a {kind}.*expected a regular file"):
            load(target)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_errors_name_the_path_that_the_user_wrote(op, tmp_path):
    for path in (tmp_path / "no" / "folder", tmp_path / ("n" * 256)):
        with pytest.raises(OSError) as raised:  # noqa: PT011 -- of the system, in its language
            save(path, op)
        assert raised.value.filename == str(path)
        assert "partial" not in str(raised.value)
    longest = tmp_path / ("n" * 255)
    save(longest, op)
    assert load(longest).num_codebooks == op.num_codebooks


@pytest.mark.parametrize("path", [None, 5, b"name", 1.5])
def test_what_is_no_path_is_a_type_error(op, path):
    for call in (lambda: save(path, op), lambda: load(path)):
        with pytest.raises(TypeError, match=f"`path` is {type(path).__name__}; expected the path of a file"):
            call()


def test_a_stream_is_a_type_error(tmp_path):
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    with open(tmp_path / "rubbish", "rb") as file, pytest.raises(TypeError, match="`path` is BufferedReader"):
        load(file)


def test_permissions_and_links_are_kept(op, path):
    save(path, op)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path.name)
    save(link, op)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_writer_may_be_anything(path):
    atomic.replace_file(path, lambda file: file.write(b"words"))
    assert path.read_bytes() == b"words"
    with pytest.raises(ZeroDivisionError):
        atomic.replace_file(path, lambda file: 1 / 0)
    assert path.read_bytes() == b"words"
    assert only_file(path)


def test_archives_are_written_by_the_same_function(path, monkeypatch):
    monkeypatch.setattr(archive, "replace_file", lambda path, write: write(open(path, "wb")))  # noqa: SIM115
    archive.write(path, "kind", 1, {}, {})
    assert zipfile.is_zipfile(path)
