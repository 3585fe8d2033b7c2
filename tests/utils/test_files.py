"""Files are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hf_exposure.utils import files
from hf_exposure.utils.files import load_json, write_bytes, write_text


def test_text_is_written_as_utf8_with_its_line_ends_untouched(tmp_path: Path) -> None:
    text = "canary • \r\n über\n"
    assert write_text(tmp_path / "a.txt", text) == tmp_path / "a.txt"
    assert (tmp_path / "a.txt").read_bytes() == text.encode("utf-8")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_a_file_that_is_there_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer than the new one")
    path.chmod(0o640)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_that_open_would_give(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "ours", "x")
        with open(tmp_path / "theirs", "w") as file:
            file.write("x")
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs")}
    assert len(modes) == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_devices_and_fifos_are_written_to_as_they_are(tmp_path: Path) -> None:
    write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_text(fifo, "through", overwrite=False)
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode) and os.listdir(tmp_path) == ["fifo"]


def test_hard_links_stay_one_file_and_links_to_nothing_make_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "b").read_text() == "new"
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError):
        write_text(tmp_path / "loop", "x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to be root")
def test_an_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    path.chmod(0o2640)
    write_text(path, "new")
    now = path.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (1234, 4321, 0o2640)


def test_a_file_whose_owner_cannot_be_kept_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    number = path.stat().st_ino

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(files.os, "chown", refuse)
    old = os.stat_result((0o100644, number, 0, 1, 99, 99, 3, 0, 0, 0))
    monkeypatch.setattr(
        files.Path, "stat", lambda self, **_: old if self == path else os.stat(self)
    )
    write_text(path, "new")
    assert os.stat(path).st_ino == number and path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_can_be_kept_to_its_owner(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_what_killed_runs_left_is_removed_and_what_runs_write_is_not(tmp_path: Path) -> None:
    (tmp_path / f"{files.TEMPORARY}killed").write_text("half")
    (tmp_path / f"{files.TEMPORARY}folder").mkdir()
    (tmp_path / f"{files.TEMPORARY}folder" / "rows").write_text("half")
    (tmp_path / "_of_mine").write_text("x")
    with files.replacing(tmp_path / "a") as first:
        write_text(tmp_path / "b", "b")  # meanwhile
        assert first.write(b"a")
        with files.temporary(tmp_path, is_folder=True) as folder:
            (folder / "rows").write_text("x")
            write_text(tmp_path / "c", "c")
            assert (folder / "rows").is_file()
    assert sorted(os.listdir(tmp_path)) == ["_of_mine", "a", "b", "c"]
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / f"{files.TEMPORARY}killed").write_text("half")
    files.remove_left(tmp_path)
    assert not os.listdir(tmp_path / "checkpoint-1")


def test_a_file_is_replaced_only_if_that_is_wanted(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a", "old", overwrite=False)
    write_text(path, "old", overwrite=False)  # the same: nothing is lost
    with pytest.raises(FileExistsError, match=r"^f: '.*a' is there already.*overwrite=True"):
        write_text(path, "new", where="f", overwrite=False)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, fail)
        with pytest.raises(type(error)):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_that_utf8_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_in_the_place_of_the_file_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder' is a folder.*name a file") as caught:
        write_text(tmp_path / "folder", "x")
    assert "Errno" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(tmp_path / "folder")


def test_a_file_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^f: there is no file '.*x\.json'; give this$"):
        load_json(tmp_path / "x.json", lambda data: data, "f", "this")
    with pytest.raises(IsADirectoryError, match=r"^f: '.*' is a folder; give this$"):
        load_json(tmp_path, lambda data: data, "f", "this")
