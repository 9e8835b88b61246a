"""Seeded damage to every kind of file that the package reads: the right result or one clear line.

By default a few hundred files, with `VANISHJAX_FUZZ=N` so many of every kind.
"""

import functools
import gzip
import io
import json
import os
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.commands import vanishjax
from tests.fuzzing import Tally, check_command, check_load, json_mutations, mutations
from vanishjax.model_file import TrainedModel, load_model, save_model
from vanishjax.models import MLP
from vanishjax.training.data import load_dataset, read_idx, read_image

# Numbers at which sizes and offsets go wrong.
SIZES = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)

# Contents of damaged files, each with the kind of its damage.
Contents = Iterator[tuple[str, bytes]]


def tally_of(load, suffix: str, whole: bytes, is_same, damaged: Contents) -> Tally:
    """Reads every damaged content, and counts how that ended, by kind of damage."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"whole{suffix}")
        path.write_bytes(whole)
        expected = load(path)
        path = Path(folder, f"file{suffix}")
        for _, content in damaged:
            path.write_bytes(content)
            tally[check_load(load, path, lambda result: is_same(result, expected))] += 1
    return tally


def interleaved(*sources: Contents) -> Contents:
    for contents in zip(*sources, strict=True):
        yield from contents


def same_arrays(one, other):
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)


# --- IDX


def idx_file() -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (12, 5, 4)).astype(np.uint8)
    return b"\0\0\x08\3" + struct.pack(">3I", *array.shape) + array.tobytes()


def odd_idx_headers(whole: bytes, seed: int, count: int) -> Contents:
    rng = random.Random(seed)  # noqa: S311
    for _ in range(count):
        rank = rng.choice((0, 1, 2, 3, 4, 64, 255))
        sizes = struct.pack(f">{rank}I", *rng.choices((1, 4, 5, 12, *SIZES), k=rank))
        types = (0, 8, 9, 11, 12, 13, 14, 15, 255)
        yield "header", bytes([0, 0, rng.choice(types), rank]) + sizes + whole[16:]


def damage_idx(count: int, seed: int = 0) -> Tally:
    """IDX files, bytes and headers in turn."""
    whole, half = idx_file(), count // 3
    damaged = interleaved(
        mutations(whole, seed=seed, count=half),
        mutations(whole, seed=seed, count=half, head=16),
        odd_idx_headers(whole, seed, half),
    )
    return tally_of(read_idx, "-idx3-ubyte", whole, same_arrays, damaged)


def damage_gzipped_idx(count: int, seed: int = 0) -> Tally:
    """IDX files within gzip, whose bytes are damaged; and damaged ones compressed again."""
    inner = idx_file()
    whole = gzip.compress(inner, mtime=0)
    damaged = interleaved(
        mutations(whole, seed=seed, count=count // 2),
        (
            (kind, gzip.compress(content, mtime=0))
            for kind, content in odd_idx_headers(inner, seed, count // 2)
        ),
    )
    return tally_of(read_idx, "-idx3-ubyte.gz", whole, same_arrays, damaged)


# --- NumPy archives


def npy_file(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


MEMBERS = {
    "x.npy": npy_file(np.random.default_rng(0).random((24, 3)).astype(np.float32)),
    "y.npy": npy_file(np.arange(24) % 2),
}


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def odd_members(seed: int, count: int) -> Contents:
    """Archives whose checksums are right, of arrays whose headers aren't."""
    rng = random.Random(seed)  # noqa: S311
    fields = {"descr": "<f4", "fortran_order": False, "shape": [24, 3]}
    for kind, odd in json_mutations(fields, seed=seed, count=count):
        name = rng.choice(["x.npy", "y.npy"])
        if rng.random() < 0.2:  # One that may be right, for the array or for another of its size.
            shape = rng.choice(([24, 3], [72], [3, 24], [24, 3, 1], [12, 6], [24, 1, 3, 1]))
            descr = rng.choice(("<f4", ">f4", "<i4", "|V4", "<c8", "<f2", "|S4", "<M8[s]"))
            kind, odd = "other", {**fields, "descr": descr, "shape": shape}
        text = _tuples(odd) if rng.random() < 0.7 else _text(odd)
        if rng.random() < 0.3:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice("()[]{},'\"L-0e\x1b\0") + text[place + 1 :]
        header = text.encode("utf8", "replace")[:65535]
        version = rng.choice((b"\1\0",) * 8 + (b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
        length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
        data = MEMBERS[name].partition(b"\n")[2]
        content = b"\x93NUMPY" + version + length + header + data
        yield kind, archive_of({**MEMBERS, name: content}, rng.choice((0, 8)))


def _text(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # of thousands of digits
        return "0x" + "f" * 5000


def _tuples(value: object) -> str:
    """As a Python literal, lists as tuples."""
    if isinstance(value, list):
        return "(" + "".join(f"{_tuples(item)}, " for item in value) + ")"
    if isinstance(value, dict):
        pairs = (f"{_text(key)}: {_tuples(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return _text(value)


def odd_records(whole: bytes, seed: int, count: int) -> Contents:
    """Archives in whose directories a field is another number: a size, an offset, a flag."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(count):
        content = bytearray(whole)
        record, length = rng.choice(((b"PK\1\2", 46), (b"PK\3\4", 30), (b"PK\5\6", 22)))
        start = rng.choice((content.find(record), content.rfind(record)))
        width = rng.choice((2, 4))
        place = start + rng.randrange(4, length - width + 1, 2)
        value = rng.choice(SIZES) % 256**width
        content[place : place + width] = value.to_bytes(width, "little")
        yield "record", bytes(content)


def load_arrays(path):
    data = load_dataset(path)
    return data.train, data.validation, data.test


def same_examples(ones, others):
    return all(
        same_arrays(one.inputs, other.inputs) and same_arrays(one.labels, other.labels)
        for one, other in zip(ones, others, strict=True)
    )


def damage_archive_bytes(count: int, seed: int = 0) -> Tally:
    """.npz archives, bytes and records in turn."""
    whole = archive_of(MEMBERS)
    damaged = interleaved(
        mutations(whole, seed=seed, count=count // 2), odd_records(whole, seed, count // 2)
    )
    return tally_of(load_arrays, ".npz", whole, same_examples, damaged)


def damage_archive_headers(count: int, seed: int = 0) -> Tally:
    """.npz archives whose checksums are right."""
    damaged = odd_members(seed, count)
    return tally_of(load_arrays, ".npz", archive_of(MEMBERS), same_examples, damaged)


# --- images


def image_file(kind: str) -> bytes:
    file, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (9, 7, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    mode = {"PNG": "RGBA", "GIF": "P", "JPEG": "RGB", "BMP": "RGB"}[kind]
    image.convert(mode).save(file, kind)
    return file.getvalue()


def odd_chunks(whole: bytes, seed: int, count: int) -> Contents:
    """PNG files whose checksums are right, of chunks that aren't."""
    rng = random.Random(seed)  # noqa: S311
    chunks, place = [], 8
    while place < len(whole):
        (length,) = struct.unpack(">I", whole[place : place + 4])
        chunks.append((whole[place + 4 : place + 8], whole[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(count):
        changed = list(chunks)
        at = rng.randrange(len(changed))
        name, data = changed[at]
        kind = rng.choice(("mutated", "mutated", "size", "inflated", "name", "twice"))
        if kind == "size" and name == b"IHDR":
            size = struct.pack(">I", rng.choice((1, 7, 9, 5000, *SIZES)))
            start = rng.choice((0, 4))
            data = data[:start] + size + data[start + 4 :]
        elif kind == "inflated" and name == b"IDAT":
            data = zlib.compress(bytes(rng.choice((0, 1, 100, 10**6))))
        elif kind == "name":
            name = rng.choice((b"IDAT", b"IEND", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf"))
        elif kind == "twice":
            changed.insert(rng.randrange(len(changed) + 1), (name, data))
        elif data:
            ((_, data),) = mutations(data, seed=rng.getrandbits(32), count=1)
        changed[at] = (name, data)
        body = (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in changed
        )
        yield kind, whole[:8] + b"".join(body)


def damage_images(count: int, seed: int = 0) -> Tally:
    """PNG files, bytes and chunks in turn; and JPEG, BMP and GIF."""
    tally, fifth = Tally(), count // 5
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        whole = image_file(kind)
        damaged = mutations(whole, seed=seed, count=fifth)
        tally.update(tally_of(read_image, f".{kind.lower()}", whole, same_arrays, damaged))
    whole = image_file("PNG")
    tally.update(tally_of(read_image, ".png", whole, same_arrays, odd_chunks(whole, seed, fifth)))
    return tally


# --- model files


@functools.cache
def model_file() -> bytes:
    architecture = {
        "in_features": 4, "hidden": [3, 3], "classes": 2, "activation": "relu",
        "residual": "rezero", "scan": True, "dtype": "float32", "param_dtype": "float32",
    }  # fmt: skip
    description = {
        "data": "digits", "image_shape": [2, 2], "pixel_max": 16.0, "classes": 2,
        "normalization": {"offset": 0.0, "scale": [1.0, 2.0, 3.0, 4.0]},
    }  # fmt: skip
    model = MLP((3, 3), 2, "relu", residual="rezero", scan=True)
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_model(path, TrainedModel(params, architecture, description))
        header, arrays = opened_model(path.read_bytes())
    # The library writes the metadata in another order each time, and damage is to be the same.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return closed_model(header, arrays)


def opened_model(content: bytes) -> tuple[dict, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def closed_model(header: object, arrays: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + arrays


def same_models(one, other):
    if (one.architecture, one.description) != (other.architecture, other.description):
        return False
    pairs = zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)
    return all(same_arrays(*map(np.asarray, pair)) for pair in pairs)


def odd_model_headers(whole: bytes, seed: int, count: int) -> Contents:
    """Model files that are whole, of a header or a description that isn't."""
    header, arrays = opened_model(whole)
    texts = ("architecture", "description")
    inner = {name: json.loads(header["__metadata__"][name]) for name in texts}
    for number, (kind, odd) in enumerate(
        json_mutations([inner, header], seed=seed, count=10 * count)
    ):
        if number == count:
            return
        match odd:
            case [{"architecture": _, "description": _} as inner_odd, dict(header_odd)]:
                metadata = header_odd.get("__metadata__")
                if isinstance(metadata, dict) and inner_odd != inner:
                    metadata |= {name: json.dumps(inner_odd[name]) for name in texts}
            case _:
                header_odd = odd
        yield kind, closed_model(header_odd, arrays)


def damage_models(count: int, seed: int = 0) -> Tally:
    """Model files, bytes and fields in turn."""
    whole, third = model_file(), count // 3
    (length,) = struct.unpack("<Q", whole[:8])
    damaged = interleaved(
        mutations(whole, seed=seed, count=third, head=8 + length),
        odd_model_headers(whole, seed, third),
        odd_model_headers(whole, seed + 1, third),
    )
    return tally_of(load_model, ".safetensors", whole, same_models, damaged)


KINDS: dict[str, Callable[[int, int], Tally]] = {
    "idx": damage_idx,
    "idx_gzip": damage_gzipped_idx,
    "npz_bytes": damage_archive_bytes,
    "npz_headers": damage_archive_headers,
    "image": damage_images,
    "model": damage_models,
}
"""For every kind of file what damages so many of them, from a seed."""


@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_right_or_in_one_line(kind, record_property):
    count = int(os.environ.get("VANISHJAX_FUZZ", "90"))
    tally = KINDS[kind](count, 0)
    record_property("tally", str(tally))
    print(kind, tally)
    assert tally.total() >= count - 4
    assert tally["refused"] > count / 5
    if kind == "npz_bytes":
        assert not tally["other"]  # An archive has a checksum for all that it holds.


# --- commands


def test_commands_on_damaged_files_end_right_or_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("whole.png")
    whole = model_file()
    Path("whole.safetensors").write_bytes(whole)
    assert vanishjax("predict", "whole.png", "--model", "whole.safetensors").status == 0
    tally = Tally()
    for _, content in odd_model_headers(whole, 5, 25):
        Path("a.safetensors").write_bytes(content)
        tally[check_command(vanishjax("predict", "whole.png", "--model", "a.safetensors"))] += 1
    for _, content in odd_chunks(image_file("PNG"), 5, 10):
        Path("a.png").write_bytes(content)
        tally[check_command(vanishjax("predict", "a.png", "--model", "whole.safetensors"))] += 1
    for _, content in odd_members(5, 20):
        Path("a.npz").write_bytes(content)
        # So large a batch that what isn't refused before isn't trained on either.
        ran = vanishjax("train", "--data", "a.npz", "--batch-size", "50", "--out", "run")
        tally[check_command(ran)] += 1
    print("commands", tally)
    assert tally["refused"] > 30
    assert not Path("run").exists()
