import io
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest

from vanishjax.training.data import DataError, DataWarning, load_dataset

RNG = np.random.default_rng(0)
X = RNG.random((60, 5)).astype(np.float32)
Y = np.arange(60) % 3


def save(tmp_path, **arrays):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "labels"), ("x_train", "y_train")])
def test_names(tmp_path, names):
    data = load_dataset(save(tmp_path, **dict(zip(names, (X, Y), strict=True)), other=X))
    assert (data.name, data.image_shape, data.classes) == ("mine", None, 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (38, 10, 12)
    assert data.train.inputs.dtype == np.float32
    assert data.train.labels.dtype == np.int32


def test_own_test_and_validation_parts_are_kept_as_they_are(tmp_path):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:7], "y_test": Y[:7]}
    data = load_dataset(save(tmp_path, **parts), test_split=0.9, validation_split=0.5)
    np.testing.assert_array_equal(data.test.inputs, X[:7])
    assert (len(data.train), len(data.validation)) == (30, 30)
    parts |= {"x_validation": X[:4], "y_validation": Y[:4]}
    data = load_dataset(save(tmp_path, **parts), test_split=0.9, validation_split=0.5)
    np.testing.assert_array_equal(data.validation.inputs, X[:4])
    np.testing.assert_array_equal(data.train.inputs, X)
    np.testing.assert_array_equal(data.train.labels, Y)


@pytest.mark.parametrize(
    ("shape", "image_shape"), [((60, 12), None), ((60, 4, 3), (4, 3)), ((60, 4, 3, 1), (4, 3))]
)
def test_images_are_flattened_by_rows(tmp_path, shape, image_shape):
    x = RNG.random(shape)
    data = load_dataset(save(tmp_path, x=x, y=np.arange(60.0)))
    assert data.image_shape == image_shape
    rows = np.concatenate([data.train.labels, data.validation.labels, data.test.labels])
    order = rows.astype(int)
    inputs = np.concatenate([data.train.inputs, data.validation.inputs, data.test.inputs])
    np.testing.assert_array_equal(inputs, x.reshape(60, 12).astype(np.float32)[order])


def test_relative_paths_start_from_data_dir(tmp_path):
    save(tmp_path, x=X, y=Y)
    assert load_dataset("mine.npz", data_dir=tmp_path).classes == 3


def test_floats_are_targets_and_integers_are_classes(tmp_path):
    path = save(tmp_path, x=X, y=np.stack([Y, Y], 1) / 2)
    data = load_dataset(path)
    assert data.classes is None
    assert data.train.labels.shape == (38, 2)
    assert data.train.labels.dtype == np.float32
    path = save(tmp_path, x=X, y=Y.astype(np.float64))
    assert load_dataset(path).classes is None
    with pytest.warns(DataWarning, match="taken for classes 0 to 2"):
        assert load_dataset(path, targets="classes").classes == 3
    path = save(tmp_path, x=X, y=Y[:, None])
    assert load_dataset(path).train.labels.shape == (38,)
    real = load_dataset(path, targets="real")
    assert real.classes is None
    assert real.train.labels.shape == (38, 1)


def bad_value(value, dtype=np.float32):
    x = X.astype(dtype)
    x[5, 2] = x[7, 0] = value
    return x


def labels(value, at=9, dtype=np.int64):
    y = Y.astype(dtype)
    y[at] = value
    return y


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "y": Y}, "holds the arrays a, y; it needs x and y"),
        ({"x_train": X}, "it needs x and y"),
        ({"x": X, "y": Y, "x_test": X}, "has x_test but not y_test"),
        ({"x": X, "y": Y, "y_validation": Y}, "has y_validation but not x_validation"),
        ({"x": X[:, 0], "y": Y}, r"x: shape \(60,\) is not \[n, features\]"),
        ({"x": X[0, 0], "y": Y}, r"x: shape \(\) is not"),
        ({"x": np.zeros((60, 2, 2, 3)), "y": Y}, "x: shape .*gray"),
        ({"x": X[:0], "y": Y[:0]}, r"x: shape \(0, 5\) is empty"),
        ({"x": X[:, :0], "y": Y}, r"x: shape \(60, 0\) is empty"),
        ({"x": X.astype(str), "y": Y}, "x: dtype <U.* is not real numbers"),
        ({"x": X + 1j, "y": Y}, "x: dtype complex64 is not real numbers"),
        ({"x": X.astype(object), "y": Y}, "x: an array of Python objects"),
        ({"x": X, "y": Y.astype(object)}, "y: an array of Python objects"),
        ({"x": X, "y": Y[:-1]}, r"y: labels of shape \(59,\) for the 60 inputs of .*x;"),
        ({"x": X, "y": np.int64(3)}, r"y: labels of shape \(\) for the 60 inputs"),
        ({"x": bad_value(np.nan), "y": Y}, r"x: 2 of 300 values are not .* nan, at \[5, 2\]"),
        ({"x": bad_value(-np.inf), "y": Y}, r"-inf, at \[5, 2\]"),
        ({"x": bad_value(1e39, np.float64), "y": Y}, r"2 of 300 .* 1e\+39, at \[5, 2\]"),
        ({"x": X, "y": labels(-1)}, "y: label -1 at index 9 is negative"),
        ({"x": X, "y": labels(60)}, "y: label 60 at index 9 is out of range for 60 examples"),
        ({"x": X, "y": labels(2**63, dtype=np.uint64)}, "label 9223372036854775808 at index 9"),
        ({"x": X, "y": Y.astype(str)}, "y: dtype <U21 is not class numbers"),
        ({"x": X, "y": np.eye(3, dtype=int)[Y]}, r"y: shape \(60, 3\) .*argmax"),
        ({"x": X, "y": labels(np.nan, dtype=float)}, r"y: 1 of 60 values is .* nan, at \[9\]"),
        ({"x": X, "y": Y[:, None, None] / 2}, r"y: shape \(60, 1, 1\) is not \[n\] or \[n, k\]"),
        ({"x": X, "y": np.zeros((60, 0))}, r"y: shape \(60, 0\) is not \[n\] or \[n, k\]"),
        ({"x": X, "y": labels(3)}, "y: class 3 has too few examples to split: 1, where 3 are"),
        ({"x": X[:2], "y": Y[:2] * 1.5}, "there are too few examples to split: 2, where 3 are"),
        ({"x": X, "y": Y, "x_test": X[:, :4], "y_test": Y}, r"x_test.*\(4,\).* x are \(5,\)"),
        ({"x": X, "y": Y / 2, "x_test": X, "y_test": Y[:, None] / 2}, r"y_test: targets of"),
        ({"x": X, "y": Y, "x_test": X, "y_test": labels(-2)}, "y_test: label -2 at index 9"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, words):
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=words) as raised:
        load_dataset(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_classes_must_be_whole_numbers_when_asked_for(tmp_path):
    for value, words in ((0.5, "label 0.5 at index 9"), (np.inf, "inf"), (np.nan, "nan")):
        path = save(tmp_path, x=X, y=labels(value, dtype=float))
        with pytest.raises(DataError, match=words):
            load_dataset(path, targets="classes")


def test_targets_must_be_numbers(tmp_path):
    with pytest.raises(DataError, match="y: dtype <U21 is not real numbers"):
        load_dataset(save(tmp_path, x=X, y=Y.astype(str)), targets="real")


def test_standardizing_may_not_overflow(tmp_path):
    x = np.zeros((60, 1))
    x[0::2] = 1e-100
    path = save(tmp_path, x=x, y=Y, x_test=x + 2, y_test=Y)
    with pytest.raises(DataError, match="normalized test inputs overflow float32"):
        load_dataset(path, normalization="standard")


def npy(array=X):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HUGE = npy().replace(b"(60, 5), }" + b" " * 12, b"(60000000000, 5), }" + b" " * 3)
MISFIT = npy().replace(b"(60, 5)", b"(60, 4)")
STRUCTURED = npy(np.zeros(60, "i4,f4"))
with pytest.warns(UserWarning, match="format 3.0"):
    NESTED = npy(np.zeros((60, 5), [("漢", "f4")]))


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (b"", "x: not a NumPy array"),
        (b"hello", "x: not a NumPy array"),
        (npy()[:-1], "x: truncated or damaged"),
        (npy() + b"\0", "x: truncated or damaged"),
        (MISFIT, "x: truncated or damaged: its size does not fit"),
        (HUGE, r"x: shape \(60000000000, 5\) is over the limit"),
        (STRUCTURED, "x: dtype .* is not real numbers"),
        (NESTED, "x: must be a plain array of numbers"),
    ],
)
def test_bad_members_are_named(tmp_path, member, words):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", npy(Y))
    with pytest.raises(DataError, match=words):
        load_dataset(path)


def test_pickles_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = save(tmp_path, x=np.array([[Bomb()]], object), y=Y[:1])
    with pytest.raises(DataError, match="run any code"):
        load_dataset(path)


def test_a_zip_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr("vanishjax.training.data.npz.MAX_BYTES", 1000)
    with pytest.raises(DataError, match="over the limit of 1000 bytes"):
        load_dataset(save(tmp_path, x=X, y=Y))


def test_foreign_compression_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy())
        archive.writestr("y.npy", npy(Y))
    with pytest.raises(DataError, match="compressed in a way"):
        load_dataset(path)


def test_not_an_archive(tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(npy())
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        load_dataset(path)
    (tmp_path / "mine.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"mine.csv: neither an .npz file nor a folder"):
        load_dataset(tmp_path / "mine.csv")
    for name in ("nix.npz", "imagenet"):
        with pytest.raises(DataError, match="no such"):
            load_dataset(tmp_path / name)


def test_no_damage_raises_anything_else(tmp_path):
    good = save(tmp_path, x=X[:12, :2], y=Y[:12]).read_bytes()
    path = tmp_path / "bad.npz"
    refused = 0
    for at in range(0, len(good), 3):
        for data in (good[:at], good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]):
            path.write_bytes(data)
            try:
                load_dataset(path)
            except DataError:
                refused += 1
    assert refused > len(good) / 3  # all truncations, at least


def header(text, data=b"", version=(1, 0)):
    """A member whose header is any text."""
    content = text.encode("latin1")
    length = len(content).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + content + data


def fields(shape, descr="'<f4'", fortran_order="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}}}")


def write_members(path, *members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name given twice
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(path):
    """The one short line that says why; no memory to speak of is taken for it."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as raised:
            load_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(raised.value)
    assert peak < 20_000_000
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) <= 400
    return message


HEADERS = [
    fields("(60, 6, "),
    fields("(True, 360)"),
    fields("(60, 6.0)"),
    fields("(-60, -5)"),
    fields("((60, 5),)"),
    fields("[60, 5]"),
    fields("60"),
    fields("None"),
    fields("(0, " + "9" * 4000 + ")"),
    fields("(0x" + "f" * 9000 + ", 5)"),
    fields("(0, 0x" + "f" * 9000 + ")"),
    fields("(0, 4611686018427387904, 16)"),
    fields("(" + "1," * 2000 + ")"),
    fields("(" + "1," * 60 + ")", "'<f8'"),
    fields("(" * 4000 + ")" * 4000),
    fields("(" + "-" * 9000 + "1,)"),
    fields("(60, 5)", "'|O'"),
    fields("(60, 5)", "[('a', '|O')]"),
    fields("(60, 5)", "[('a', '<f4'), ('a', '<f4')]"),
    fields("(60, 5)", "'<f4,<f4'"),
    fields("(60, 5)", "('<f4', (1000000, 1000000))"),
    fields("(60, 5)", "'V0'"),
    fields("(60, 5)", "'<U0'"),
    fields("(60, 5)", "'<M8[s]'"),
    fields("(60, 5)", "'" + "x" * 5000 + "'"),
    fields("(60, 5)", "7"),
    fields("(60, 5)", "None"),
    fields("(60, 5)", "'<f4'", "'no'"),
    fields("(60, 5)", "'<f4'", "1"),
    header("{}"),
    header("{'shape': (60, 5)}"),
    header("print(1)"),
    header("\x1b[31m\0\n"),
    header("x" * 60_000),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (60L, 5L), }"),
    header("{'descr': '\\d', 'fortran_order': False, 'shape': (1if 1else 2,)}"),
    header("", version=(0, 0)),
    header("{}", version=(2, 0)),
    header("{}", version=(9, 9)),
    b"\x93NUMPY\2\0" + b"\xff" * 4 + b"{",
    b"\x93NUMPY\1\0\xff",
]


@pytest.mark.parametrize("member", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("name", ["x", "y"])
def test_a_header_of_any_text_is_refused_in_one_line(tmp_path, member, name):
    other = "y" if name == "x" else "x"
    members = {f"{name}.npy": member, f"{other}.npy": npy(Y if other == "y" else X)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refused(write_members(tmp_path / "mine.npz", *members.items()))
    assert f"mine.npz: {name}" in message


def test_a_header_too_long_is_not_even_read(tmp_path):
    bomb = b"\x93NUMPY\2\0" + (2**31).to_bytes(4, "little") + b" " * 60_000_000
    members = [("x.npy", bomb), ("y.npy", npy(Y))]
    path = write_members(tmp_path / "mine.npz", *members, compression=zipfile.ZIP_DEFLATED)
    assert "its header is too long" in refused(path)


def test_many_members_make_no_long_line(tmp_path):
    path = tmp_path / "mine.npz"
    write_members(path, *((f"array_{i:05d}.npy", b"") for i in range(20_000)))
    assert "array_00009 and 19,990 more; it needs x and y" in refused(path)
    write_members(path, ("\x1b[31m\u202e" * 5000 + ".npy", b""))
    assert r"\x1b[31m\u202e" in refused(path)


def test_an_array_saved_twice_is_refused(tmp_path):
    members = [("x.npy", npy()), ("y.npy", npy(Y)), ("x.npy", npy(X + 1))]
    assert "holds x 2 times" in refused(write_members(tmp_path / "mine.npz", *members))


def patched(path, place, value, width=4):
    """An archive of one stored member, a field of its central directory changed."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\1\2") + place
    data[start : start + width] = value.to_bytes(width, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("promised", [10**6, 2**32 - 2])
def test_an_archive_that_lies_about_a_size_is_refused(tmp_path, compression, promised):
    data = promised - len(fields(f"({promised},)", "'|u1'"))
    x = fields(f"({data:0{len(str(promised))}},)".replace("(0", "( "), "'|u1'")
    assert len(x) + data == promised
    members = [("y.npy", npy(Y)), ("x.npy", x + bytes(100))]
    path = write_members(tmp_path / "mine.npz", *members, compression=compression)
    assert "its size does not fit" in refused(patched(path, 24, promised))


def test_an_encrypted_array_is_refused(tmp_path):
    members = [("y.npy", npy(Y)), ("x.npy", npy())]
    path = write_members(tmp_path / "mine.npz", *members)
    assert "encrypted" in refused(patched(path, 8, 1, width=2))


def test_arrays_in_either_order_are_read(tmp_path):
    path = save(tmp_path, x=np.asfortranarray(X), y=Y.astype(">i4"))
    again = load_dataset(path)
    expected = load_dataset(save(tmp_path, x=X, y=Y))
    np.testing.assert_array_equal(again.train.inputs, expected.train.inputs)
    np.testing.assert_array_equal(again.train.labels, expected.train.labels)
