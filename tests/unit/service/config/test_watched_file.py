"""Telling new content from old."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.config.watched_file import FileUnusable, WatchedFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def test_content_is_told_once(path: Path) -> None:
    file = WatchedFile(path, max_bytes=10)
    assert file.changed() == b"one"
    assert file.changed() is None
    path.write_text("two")
    assert file.changed() == b"two"
    path.touch()
    assert file.changed() is None


def test_a_change_that_keeps_size_and_time_is_seen_while_the_file_is_young(path: Path) -> None:
    file = WatchedFile(path, max_bytes=10)
    file.changed()
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.changed() == b"two"


def test_a_file_that_has_long_been_as_it_is_is_not_read_again(path: Path) -> None:
    os.utime(path, (1, 1))
    file = WatchedFile(path, max_bytes=10)
    file.changed()
    path.write_text("two")
    os.utime(path, (1, 1))
    assert file.changed() is None


def test_a_file_that_is_gone_is_told_each_time_and_new_once_it_is_back(path: Path) -> None:
    file = WatchedFile(path, max_bytes=10)
    file.changed()
    aside = path.rename(path.with_name("aside"))
    for _ in range(2):
        with pytest.raises(FileUnusable, match="No such file"):
            file.changed()
    aside.rename(path)
    assert file.changed() == b"one"


def test_a_file_that_is_too_long_is_told_once_for_each_change(path: Path) -> None:
    file = WatchedFile(path, max_bytes=2)
    with pytest.raises(FileUnusable, match="is 3 bytes long, and at most 2"):
        file.changed()
    assert file.changed() is None


def test_a_link_that_is_moved_to_another_file_is_followed(path: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(path)
    file = WatchedFile(link, max_bytes=10)
    file.changed()
    (tmp_path / "second").write_text("two")
    other.symlink_to(tmp_path / "second")
    other.rename(link)
    assert file.changed() == b"two"
