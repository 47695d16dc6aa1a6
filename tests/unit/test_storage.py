"""Local files behind the storage functions: atomic writes, clear errors, commit by manifest."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray import storage
from placeray.errors import StorageError


def test_relative_paths_count_from_the_root_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACERAY_ROOT", str(tmp_path))
    assert storage.resolve("a/b") == f"{tmp_path}/a/b"
    assert storage.resolve("/x") == "/x"
    assert storage.resolve("file:///x/y/") == "/x/y"
    assert storage.resolve("s3://bucket/key/") == "s3://bucket/key"


def test_unset_variable_is_named() -> None:
    with pytest.raises(StorageError, match="PLACERAY_NOT_SET"):
        storage.resolve("${PLACERAY_NOT_SET}/x")


def test_round_trips(tmp_path: Path) -> None:
    root = str(tmp_path / "new" / "folder")
    storage.write_bytes(f"{root}/a.bin", b"\x00\xff")
    storage.write_text(f"{root}/b.txt", "ä")
    storage.write_json(f"{root}/sub/c.json", {"k": [1, None]})
    table = pa.table({"x": [1, 2]})
    storage.write_table(f"{root}/sub/d.parquet", table)
    assert storage.read_bytes(f"{root}/a.bin") == b"\x00\xff"
    assert storage.read_text(f"{root}/b.txt") == "ä"
    assert storage.read_json(f"{root}/sub/c.json") == {"k": [1, None]}
    assert storage.read_table(f"{root}/sub/d.parquet").equals(table)
    assert storage.list_files(root, ".json") == [f"{root}/sub/c.json"]
    assert storage.list_files(f"{root}/sub/c.json") == [f"{root}/sub/c.json"]
    assert storage.list_files(f"{root}/sub/c.json", ".txt") == []
    assert storage.size(f"{root}/a.bin") == 2


def test_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    storage.write_text(str(target), "old")

    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_text(str(target), "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@settings(deadline=None)
@given(there=st.lists(st.booleans(), max_size=40), at_once=st.integers(1, 3))
def test_many_files_are_read_in_order_and_missing_ones_are_none(there: list[bool], at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uris = [f"{folder}/{number}" for number in range(len(there))]
        for number, uri in enumerate(uris):
            if there[number]:
                storage.write_bytes(uri, bytes([number]) * number)
        expected = [bytes([n]) * n if there[n] else None for n in range(len(there))]
        assert list(storage.read_files(uris, at_once)) == expected
        remote = [f"memory:/{uri}" for uri in uris]  # fetched by threads
        for number, uri in enumerate(remote):
            if there[number]:
                storage.write_bytes(uri, bytes([number]) * number)
        assert list(storage.read_files(remote, at_once)) == expected


def test_a_reader_that_stops_early_leaves_no_open_file(tmp_path: Path) -> None:
    uris = [str(tmp_path / str(number)) for number in range(20)]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    before = len(os.listdir("/proc/self/fd"))
    reader = storage.read_files(uris, 2)
    next(reader)
    assert len(os.listdir("/proc/self/fd")) > before
    reader.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_among_files_is_an_error(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match=str(tmp_path)):
        list(storage.read_files([str(tmp_path)], 1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_that_no_file_can_have_are_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    odd = [f"{tmp_path}/file/b.jpg", f"{tmp_path}/{'n' * 300}.jpg", f"{tmp_path}/file"]
    assert list(storage.read_files(odd, 1)) == [None, None, b"x"]


def test_a_large_file_is_synced_while_it_grows(tmp_path: Path) -> None:
    piece = bytes(range(256)) * 4096  # 1 MiB
    digest = hashlib.sha256()
    with storage.FileWriter(str(tmp_path / "large")) as file:
        for _ in range(40):
            file.write(piece)
            digest.update(piece)
    assert file.size == (tmp_path / "large").stat().st_size == 40 << 20
    assert file.sha256 == digest.hexdigest() == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_what_the_disk_lost_while_a_file_grew_fails_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def lose_the_first(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # the system reports a lost write once
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", lose_the_first)
    file = storage.FileWriter(str(tmp_path / "large"))
    with pytest.raises(StorageError, match="No space left on device"), file:
        file.write(bytes(17 << 20))
    assert not list(tmp_path.iterdir())


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"no such file: {tmp_path}/none"):
        storage.read_bytes(str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no such folder"):
        storage.list_files(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "output", ["new/folder/out.npz", "there/out.npz", "there/old.npz", "s3://bucket/out.npz"]
)
def test_where_a_file_can_be_written_the_check_leaves_no_trace(tmp_path: Path, output: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old.npz").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    storage.check_can_write(output if "://" in output else f"{tmp_path}/{output}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("{here}/folder", "cannot write {here}/folder: it is a folder; choose another output"),
        ("{here}/file/out.npz", "cannot write {here}/file/out.npz: {here}/file: Not a directory"),
        (
            "{here}/nowhere/out.npz",
            "cannot write {here}/nowhere/out.npz: {here}/nowhere: No such file or directory",
        ),
        ("/proc/a/out.npz", "cannot write /proc/a/out.npz: /proc: No such file or directory"),
    ],
)
def test_where_no_file_can_be_written_it_is_said(tmp_path: Path, output: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError) as error:
        storage.check_can_write(output.format(here=tmp_path))
    assert str(error.value) == sentence.format(here=tmp_path)


@pytest.mark.timeout(10)
def test_an_output_below_a_relative_root_is_tried_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACERAY_ROOT", ".")
    storage.check_can_write("new/folder/out.npz")
    assert not os.listdir(tmp_path)


def test_litter_that_its_writer_takes_away_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".tmp-0123456789ab").touch()
    unlink = os.unlink

    def twice(path: str) -> None:
        unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", twice)
    storage.remove_litter(str(tmp_path))
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"cannot write .*: Permission denied"):
        storage.check_can_write(f"{tmp_path}/out.npz")
    tmp_path.chmod(0o700)


def test_damaged_json_and_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"{")
    with pytest.raises(StorageError, match="not valid JSON"):
        storage.read_json(str(tmp_path / "x"))
    with pytest.raises(StorageError, match="cannot be read as parquet"):
        storage.read_table(str(tmp_path / "x"))


def test_a_folder_without_manifest_is_unfinished(tmp_path: Path) -> None:
    assert not storage.has_manifest(str(tmp_path))
    with pytest.raises(StorageError, match="not finished"):
        storage.read_manifest(str(tmp_path))
    storage.commit_manifest(str(tmp_path), {"a": 1})
    assert storage.read_manifest(str(tmp_path)) == {"a": 1}


def test_local_path_refuses_object_stores() -> None:
    with pytest.raises(StorageError, match="object store"):
        storage.local_path("s3://bucket/map")


def test_a_folder_that_goes_while_its_neighbours_are_listed_is_left_out(tmp_path: Path) -> None:
    for name in "abc":
        storage.write_text(f"{tmp_path}/{name}/file", name)
    walk = storage.walk_files(str(tmp_path))
    assert next(walk) == []
    (tmp_path / "b" / "file").unlink()
    (tmp_path / "b").rmdir()
    assert list(walk) == [["a/file"], ["c/file"]]
    with pytest.raises(StorageError, match="no such folder"):
        list(storage.walk_files(f"{tmp_path}/b"))
