"""Durable writes, and what is said when the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from filterdb.errors import FetchError, PipelineError
from filterdb.files import disk_errors, file_sha256, free_bytes, write_bytes_durably


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "table"
    write_bytes_durably(path, b"old")
    (tmp_path / ".table.tmp").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"no space left on device\): needs 3 bytes") as caught:
        write_bytes_durably(path, b"new")
    assert caught.value.tip is not None
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]
    assert file_sha256(path) == hashlib.sha256(b"old").hexdigest()


def test_the_caller_may_say_what_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(PipelineError) as caught,
        disk_errors(tmp_path, what="the cache at", tip="use another one"),
    ):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert str(caught.value) == (
        f"cannot write the cache at {tmp_path} (read-only file system) (use another one)"
    )


def test_a_clear_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="the line is dead"), disk_errors(tmp_path):
        raise FetchError("the line is dead")


def test_free_bytes_of_a_folder_to_come(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
