"""Data that has files: arrays, single files, folders, codes; and nodes' files in general."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import (
    Array,
    Code,
    ContainerizedCode,
    Folder,
    InstalledCode,
    PortableCode,
    RemoteFolder,
    SingleFile,
)
from grange.core.data.code_value import Launch
from grange.core.data.singlefile import READ_AT_ONCE, FileValue
from grange.core.errors import InputInvalid
from grange.core.files import checked_path, files_of, metadata_of
from grange.core.node import CalcFunctionNode
from grange.repository.key import Key, key_of


class TestArray:
    def test_aiidas_layout(self) -> None:
        node = Array({"forces": np.zeros((2, 3)), "steps": np.arange(4)})
        assert node.node_type == "data.core.array.ArrayData."
        assert node.attributes == {"array|forces": [2, 3], "array|steps": [4]}
        assert sorted(node.files) == ["forces.npy", "steps.npy"]
        assert node.names == ["forces", "steps"]
        assert node.shape("forces") == (2, 3)

    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6.0).reshape(2, 3),
            np.array(5),
            np.zeros((0, 3)),
            np.array([1 + 2j]),
            np.array(["a", "bc"]),
            np.array([True]),
            np.array([np.nan, np.inf]),
            np.asfortranarray(np.arange(6).reshape(2, 3)),
            np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        ],
        ids=lambda array: f"{array.dtype}{array.shape}",
    )
    def test_comes_back(self, array: Any) -> None:
        value = Array(array).value
        assert value.dtype == array.dtype
        np.testing.assert_array_equal(value, array)

    def test_named_arrays_come_back_by_name(self) -> None:
        value = Array({"a": np.eye(2)}).value
        assert list(value) == ["a"]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ([1, 2], "numpy.ndarray"),
            ({}, "at least one"),
            ({"a b": np.eye(2)}, "letters, digits"),
            ({"../a": np.eye(2)}, "letters, digits"),
            ({1: np.eye(2)}, "letters, digits"),
            ({"a": [1]}, "numpy.ndarray"),
            (np.array([None]), "holds objects"),
        ],
    )
    def test_refused(self, value: Any, expected: str) -> None:
        with pytest.raises(InputInvalid, match=expected):
            Array(value)


class TestSingleFile:
    def test_from_a_path(self, tmp_path: Path) -> None:
        path = tmp_path / "in.dat"
        path.write_bytes(b"abc")
        node = SingleFile(path)
        renamed = SingleFile(str(path), "other")
        path.unlink()  # small files are read at once
        assert renamed.value == FileValue("other", b"abc")
        assert node.attributes == {"filename": "in.dat"}
        assert node.content == b"abc"
        assert node.value.read_text() == "abc"

    def test_a_large_file_is_read_when_it_is_stored(self, tmp_path: Path) -> None:
        path = tmp_path / "large"
        path.write_bytes(b"x" * (READ_AT_ONCE + 1))
        node = SingleFile(path)
        assert node.files == {"large": path}
        assert node.content_hash() == SingleFile(path.read_bytes(), "large").content_hash()
        assert len(node.content) == READ_AT_ONCE + 1

    def test_from_content(self) -> None:
        node = SingleFile(b"abc", "in.dat")
        assert node.files == {"in.dat": b"abc"}
        assert SingleFile(node.value).content_hash() == node.content_hash()

    @pytest.mark.parametrize(
        ("value", "filename", "expected"),
        [
            (b"abc", None, "a name for the content"),
            (b"abc", "a/b", "a name without folders"),
            (b"abc", "..", "relative path"),
            (b"abc", "a\0", "NUL"),
            ("/no/such/file", None, "a file that exists"),
            ("/etc", None, "a file"),
            (3, None, "the path of a file"),
        ],
    )
    def test_refused(self, value: Any, filename: str | None, expected: str) -> None:
        with pytest.raises(InputInvalid, match=expected):
            SingleFile(value, filename)

    def test_an_unreadable_file(self, tmp_path: Path) -> None:
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(InputInvalid, match="a file"):
            SingleFile(loop)
        if os.geteuid() != 0:
            secret = tmp_path / "secret"
            secret.write_text("x")
            secret.chmod(0)
            with pytest.raises(InputInvalid, match="can be read"):
                SingleFile(secret)


class TestFolder:
    def test_from_a_path(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "empty").mkdir()
        (tmp_path / "a" / "b" / "c.txt").write_bytes(b"c")
        (tmp_path / "d").write_bytes(b"d")
        assert Folder(tmp_path).value == {"a/b/c.txt": b"c", "d": b"d"}

    def test_from_contents(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"x")
        assert Folder({"a/b": b"1", "c": tmp_path / "x"}).value == {"a/b": b"1", "c": b"x"}

    def test_of_keys_has_the_hash_of_its_contents(self) -> None:
        keys = {"a": key_of(b"1"), "b/c": key_of(b"2")}
        assert Folder.of_keys(keys).content_hash() == Folder({"b/c": b"2", "a": b"1"}).content_hash()
        assert Folder.of_keys({"a": key_of(b"1")}).content_hash() != Folder({"b": b"1"}).content_hash()

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("/no/such", "a folder that exists"),
            ("/etc/passwd", "a folder"),
            ({"/a": b""}, "relative path"),
            ({"a": "text"}, "bytes, or the path"),
            ({"a": Path("/no/such")}, "exists"),
            (3, "the path of a folder"),
        ],
    )
    def test_refused(self, value: Any, expected: str) -> None:
        with pytest.raises(InputInvalid, match=expected):
            Folder(value)


class TestCodes:
    def test_installed(self) -> None:
        node = InstalledCode("/usr/bin/xtb", computer_id=3, with_mpi=False, default_calc_job_plugin="xtb")
        assert node.node_type == "data.core.code.installed.InstalledCode."
        assert node.attributes == {
            "filepath_executable": "/usr/bin/xtb",
            "with_mpi": False,
            "input_plugin": "xtb",
            "prepend_text": "",
            "append_text": "",
            "use_double_quotes": False,
            "wrap_cmdline_params": False,
        }
        assert isinstance(node, Code)
        assert (node.label, node.computer_id, node.executable, node.with_mpi) == (
            "xtb",
            3,
            "/usr/bin/xtb",
            False,
        )

    def test_portable(self) -> None:
        node = PortableCode("bin/run.sh", {"bin/run.sh": b"#!/bin/sh\n"})
        assert node.node_type == "data.core.code.portable.PortableCode."
        assert (node.executable, node.value) == ("bin/run.sh", "./bin/run.sh")
        assert node.read_file("bin/run.sh") == b"#!/bin/sh\n"
        with pytest.raises(InputInvalid, match="one of the files"):
            PortableCode("run.sh", {"bin/run.sh": b""})

    @pytest.mark.parametrize(
        "arguments",
        [{"filepath_executable": ""}, {"filepath_executable": 3}, {"with_mpi": "yes"}, {"prepend_text": 3}],
    )
    def test_refused(self, arguments: Any) -> None:
        with pytest.raises(InputInvalid, match=next(iter(arguments))):
            InstalledCode(**{"filepath_executable": "/bin/true", **arguments})

    def test_containerised(self) -> None:
        node = ContainerizedCode("ch-run -b $PWD {image_name} --", "/images/q e", "pw.x", computer_id=3)
        assert node.node_type == "data.core.code.containerized.ContainerizedCode."
        assert isinstance(node, InstalledCode)
        assert (node.label, node.computer_id, node.executable) == ("pw.x", 3, "pw.x")
        assert node.attributes["engine_command"] == node.engine_command == "ch-run -b $PWD {image_name} --"
        assert node.attributes["image_name"] == node.image_name == "/images/q e"
        assert node.value.launch.container == "ch-run -b $PWD '/images/q e' --"
        assert not node.value.launch.line

    @pytest.mark.parametrize(
        "arguments", [("ch-run --", "i", "x"), ("a\n{image_name}", "i", "x"), ("{image_name}", "", "x")]
    )
    def test_a_container_needs_an_engine_and_an_image(self, arguments: tuple[str, str, str]) -> None:
        with pytest.raises(InputInvalid, match=r"engine_command|image_name"):
            ContainerizedCode(*arguments)

    def test_a_value_knows_how_its_code_is_started(self) -> None:
        code = PortableCode("run", {"run": b"#!"}, with_mpi=True, prepend_text="a", append_text="b")
        value = code.value
        assert value.launch == Launch("a", "b", True, files={"run": code.key_of_file("run")})
        assert not value.is_plain
        assert InstalledCode("xtb").value.is_plain
        assert copy.deepcopy([value])[0] is value
        assert type(pickle.loads(pickle.dumps(value))) is str
        assert f"{value}" == pickle.loads(pickle.dumps(value)) == "./run"

    def test_the_same_path_on_another_computer_is_another_code(self) -> None:
        codes = [InstalledCode("/bin/true", computer_id=computer_id) for computer_id in (None, 1, 2, 1)]
        hashes = [code.content_hash() for code in codes]
        assert hashes[1] == hashes[3]
        assert len(set(hashes)) == 3
        codes[0].computer_id = 1
        assert codes[0].content_hash() == hashes[1]

    def test_remote_folder(self) -> None:
        node = RemoteFolder("/scratch/x", computer_id=2)
        assert node.node_type == "data.core.remote.RemoteData."
        assert node.attributes == {"remote_path": "/scratch/x"}
        with pytest.raises(InputInvalid, match="absolute"):
            RemoteFolder("scratch")


class TestFilesOfNodes:
    def test_a_missing_file_is_named_with_those_there(self) -> None:
        node = CalcFunctionNode(files={"a": b"1", "b": b"2"})
        with pytest.raises(FileNotFoundError, match="no file 'c'; its files: a, b"):
            node.read_file("c")

    def test_without_access_to_the_repository(self) -> None:
        with pytest.raises(FileNotFoundError, match="no access to the repository"):
            SingleFile.of_key("a", key_of(b"1")).read_file("a")

    @pytest.mark.parametrize("path", ["", "/a", "a//b", "a/../b", "..", ".", "a/", "a\0b", "\ud800", None, 3])
    def test_paths_that_lead_elsewhere_are_refused(self, path: Any) -> None:
        with pytest.raises(InputInvalid):
            checked_path(path)
        with pytest.raises(InputInvalid):
            CalcFunctionNode(files={path: b""})

    def test_nested_layout(self) -> None:
        keys = {"top": key_of(b"1"), "dir/f": key_of(b"2"), "dir/sub/g": key_of(b"3")}
        metadata = metadata_of(keys)
        assert metadata == {
            "o": {
                "top": {"k": keys["top"]},
                "dir": {"o": {"f": {"k": keys["dir/f"]}, "sub": {"o": {"g": {"k": keys["dir/sub/g"]}}}}},
            }
        }
        assert files_of(metadata) == keys
        assert files_of({}) == {} == metadata_of({})
        assert files_of({"o": {"empty": {}}}) == {}

    @pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a")])
    def test_a_path_cannot_be_file_and_folder(self, paths: tuple[str, ...]) -> None:
        with pytest.raises(InputInvalid, match="another path"):
            metadata_of(dict.fromkeys(paths, key_of(b"")))


PARTS = st.sampled_from(["a", "o", "k", "é b", "\\", "c.d"])


@given(
    st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.binary(max_size=2), max_size=6)
)
def test_layout_comes_back(files: dict[str, bytes]) -> None:
    keys: dict[str, Key] = {path: key_of(content) for path, content in files.items()}
    if any(other.startswith(f"{path}/") for path in keys for other in keys):
        with pytest.raises(InputInvalid):
            metadata_of(keys)
    else:
        assert files_of(metadata_of(keys)) == keys
