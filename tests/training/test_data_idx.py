import contextlib
import gzip
import os
import struct
import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzzing import bounded
from vanishjax.training.data import (
    DataError,
    DataWarning,
    load_dataset,
    read_idx,
    read_idx_folder,
)
from vanishjax.training.data.idx import DTYPES, FILES

CODES = {np.dtype(dtype).newbyteorder("="): code for code, dtype in DTYPES.items()}


def idx_bytes(array):
    header = bytes([0, 0, CODES[array.dtype], array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_folder(folder, *, n=40, classes=4, shape=(3, 2), end=""):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for file, count in zip(FILES, (n, n, n // 2, n // 2), strict=True):
        if "images" in file:
            array = rng.integers(0, 256, (count, *shape), np.uint8)
        else:
            array = (np.arange(count) % classes).astype(np.uint8)
        data = idx_bytes(array)
        (folder / (file + end)).write_bytes(gzip.compress(data) if "gz" in end else data)
    return folder


arrays = st.sampled_from(sorted(CODES, key=str)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=5, min_side=0))
)


@settings(deadline=None, max_examples=60)
@given(arrays, st.booleans())
def test_every_dtype_and_shape_comes_back(array, zipped):
    data = idx_bytes(array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "array.idx")
        path.write_bytes(gzip.compress(data) if zipped else data)
        back = read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


def test_type_codes_are_those_of_the_format():
    kinds = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
    assert {code: np.dtype(dtype).str[1:] for code, dtype in DTYPES.items()} == kinds


GOOD = idx_bytes(np.arange(12, dtype=np.int16).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an IDX file: it starts with nothing"),
        (b"\x89PNG", "not an IDX file: it starts with 89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\0", "not an IDX file: it starts with 00 00 0a 01"),
        (b"\0\0\x08\0", "IDX rank 0"),
        (b"\0\0\x08\xff" + bytes(4 * 255), "IDX rank 255"),
        (GOOD[:9], "truncated within the IDX header"),
        (GOOD[:-1], r"promises 24 bytes for shape \(3, 4\), but the file is truncated: 23"),
        (GOOD + b"\0", "promises 24 bytes .* too long"),
        (b"\0\0\x0e\x03" + b"\xff" * 12, "over the limit"),
        (b"\0\0\x0e\x01\x40\0\0\0", "over the limit"),
        (b"\0\0\x08\x03" + b"\xff" * 8 + bytes(4), "over the limit"),
        (gzip.compress(GOOD, mtime=0)[:-9], "truncated or damaged gzip"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"12345678", "damaged gzip .*CRC"),
        (gzip.compress(GOOD[:-1], mtime=0), "truncated: 23"),
        (gzip.compress(GOOD + b"\0", mtime=0), "too long"),
        (b"\x1f\x8b\x08" + b"\x07" * 40, "damaged gzip"),
    ],
)
def test_bad_files_are_named(tmp_path, data, words):
    path = tmp_path / "bad-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        read_idx(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_gzip_bomb_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(50_000_000)))
    inflated = 0
    read = gzip.GzipFile.read

    def counting_read(self, size=-1):
        nonlocal inflated
        data = read(self, size)
        inflated += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counting_read)
    with pytest.raises(DataError, match="too long"):
        read_idx(path)
    assert inflated == len(GOOD) + 1


def test_no_folder_pipe_or_missing_path(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (("", "is a folder"), ("pipe", "not a file"), ("nix", "no such file")):
        with pytest.raises(DataError, match=f"{words}; give the path of an IDX file"):
            read_idx(tmp_path / path)


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_no_flipped_byte_raises_anything_else(tmp_path, at):
    for name, data in (("plain", GOOD), ("zipped", gzip.compress(GOOD, mtime=0))):
        path = tmp_path / name
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        with contextlib.suppress(DataError):
            assert isinstance(read_idx(path), np.ndarray)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
def test_folders_under_every_distributed_name(tmp_path, end, dotted):
    folder = write_folder(tmp_path / "mine", end=end)
    if dotted:
        for path in folder.iterdir():
            path.rename(folder / path.name.replace("-idx", ".idx"))
    data = read_idx_folder(folder)
    assert data.name == "mine"
    assert data.train.inputs.shape == (40, 3, 2)
    assert data.test.inputs.shape == (20, 3, 2)
    assert data.validation is None
    np.testing.assert_array_equal(data.test.labels, np.arange(20) % 4)


def test_missing_files_are_listed_with_the_ways_out(tmp_path):
    folder = write_folder(tmp_path)
    for file in FILES[1:3]:
        (folder / file).unlink()
    words = f"{FILES[1]}, {FILES[2]} missing .*--data-dir.*download"
    with pytest.raises(DataError, match=words) as raised:
        read_idx_folder(folder)
    assert str(raised.value).startswith(str(folder))
    assert FILES[0] not in str(raised.value)


def test_images_and_labels_have_their_rank_and_type(tmp_path):
    folder = write_folder(tmp_path)
    images, labels = (folder / file for file in FILES[:2])
    good = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    with pytest.raises(DataError, match=r"images.*rank 1, shape \(40,\).*rank 3"):
        read_idx_folder(folder)
    images.write_bytes(good)
    labels.write_bytes(idx_bytes(np.zeros(40, np.float32)))
    with pytest.raises(DataError, match=r"labels.*float32 of rank 1.*unsigned bytes"):
        read_idx_folder(folder)


def test_test_images_have_the_size_of_training_images(tmp_path):
    folder = write_folder(tmp_path)
    (folder / FILES[2]).write_bytes(idx_bytes(np.zeros((20, 2, 3), np.uint8)))
    with pytest.raises(DataError, match=r"t10k-images.*\(2, 3\).*train-images.*\(3, 2\)"):
        read_idx_folder(folder)


def test_load_from_a_folder(tmp_path):
    data = load_dataset(write_folder(tmp_path / "mine"), validation_split=0.25)
    assert (data.name, data.image_shape, data.classes) == ("mine", (3, 2), 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20)
    assert data.normalization.to_dict() == {"offset": 0.0, "scale": 255.0}
    raw = read_idx_folder(tmp_path / "mine").test.inputs.reshape(20, 6)
    np.testing.assert_array_equal(data.test.inputs, raw.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("within", ["", "fashion_mnist", "fashion-mnist"])
def test_named_sets_are_found_in_data_dir(tmp_path, within):
    write_folder(tmp_path / within, classes=10)
    data = load_dataset("fashion_mnist", data_dir=tmp_path)
    assert (data.name, data.classes) == ("fashion_mnist", 10)


def test_named_sets_know_their_ten_classes(tmp_path):
    folder = write_folder(tmp_path, classes=4)
    with pytest.warns(DataWarning, match="6 of 10 classes have no training example"):
        assert load_dataset("mnist", data_dir=folder).classes == 10
    labels = (np.arange(20) % 12).astype(np.uint8)
    (folder / FILES[3]).write_bytes(idx_bytes(labels))
    words = "t10k-labels.*label 10 at index 10 is out of range; classes are 0 to 9"
    with pytest.raises(DataError, match=words):
        load_dataset("mnist", data_dir=folder)


def test_images_without_their_labels(tmp_path):
    folder = write_folder(tmp_path)
    (folder / FILES[1]).write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    with pytest.raises(DataError, match=r"train-labels.*\(39,\) for the 40 inputs of.*train-im"):
        load_dataset(folder)


def test_no_images(tmp_path):
    folder = write_folder(tmp_path)
    for file, shape in zip(FILES[:2], ((0, 3, 2), (0,)), strict=True):
        (folder / file).write_bytes(idx_bytes(np.zeros(shape, np.uint8)))
    with pytest.raises(DataError, match=r"train-images.*\(0, 3, 2\) is empty"):
        load_dataset(folder)


def test_a_data_dir_without_the_files_never_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("went online"))
    with pytest.raises(DataError, match="missing"):
        load_dataset("mnist", data_dir=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_dataset("mnist", data_dir=tmp_path / "nix")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_short_file_takes_no_memory_for_what_it_promises(tmp_path, end):
    content = b"\0\0\x08\3" + struct.pack(">3I", 30_000, 300, 300) + bytes(1000)
    path = tmp_path / f"images{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    with bounded(megabytes=2), pytest.raises(DataError, match="truncated: 1000 are there"):
        read_idx(path)


def test_a_shape_of_many_sizes_makes_no_long_line(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"\0\0\x08\x40" + struct.pack(">64I", *[2**32 - 1] * 64))
    with pytest.raises(DataError, match="is over the limit") as raised:
        read_idx(path)
    assert len(str(raised.value)) < len(str(path)) + 200
