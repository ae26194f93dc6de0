"""Telling new content from old, and keeping the last good value of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.config.watched_file import FileInvalid, FileUnusable, FollowedFile, WatchedFile


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


class Followed:
    """A file of words, and what its readings were counted as."""

    def __init__(self, path: Path) -> None:
        self.counted: list[str] = []
        self.file: FollowedFile[tuple[str, ...]] = FollowedFile(
            path, self.parse, initial=(), kind="words", unit="words", setting="REQUERY_WORDS",
            count=self.counted.append, max_bytes=20,
        )  # fmt: skip

    @staticmethod
    def parse(content: bytes, suffix: str) -> tuple[str, ...]:
        words = tuple(content.decode().split())
        if "bad" in words:
            raise FileUnusable(f"holds a bad word and ends in {suffix!r}")
        if "secret" in words:
            raise RuntimeError("the secret")
        return words


def test_a_file_that_cannot_be_taken_is_named_at_the_start(path: Path) -> None:
    path.write_text("bad")
    with pytest.raises(FileInvalid) as caught:
        Followed(path).file.load()
    assert str(caught.value) == (
        f"words file {path}: holds a bad word and ends in ''; mend it, or start without "
        "REQUERY_WORDS"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"bad", "holds a bad word"), (b"secret", "RuntimeError"), (b"x" * 21, "at most 20"), (None,
      "cannot be read")],
)  # fmt: skip
def test_a_refusal_is_logged_and_counted_once_and_the_last_good_value_stays(
    path: Path, content: bytes | None, problem: str
) -> None:
    followed = Followed(path)
    assert followed.file.load() == ("one",)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with capture_logs() as logs:
        assert [followed.file.poll() for _ in range(3)] == [False] * 3
        (line,) = logs
        assert (line["event"], line["log_level"]) == ("words_file_refused", "error")
        assert problem in line["reason"]
        assert "secret" not in line["reason"]
        assert followed.file.value == ("one",)
        path.write_text("one")  # the same as before is good again
        assert followed.file.poll()
    assert followed.file.problem is None
    assert [line["event"] for line in logs[1:]] == ["words_file_mended", "words_file_read"]
    assert followed.counted == ["ok", "refused", "ok"]
