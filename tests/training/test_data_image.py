import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.fuzzing import bounded
from vanishjax.training.data import DataError, image, load_dataset, read_image

RNG = np.random.default_rng(0)
INK = (RNG.random((28, 28)) * 255).astype(np.uint8)
INK[[0, -1]] = INK[:, [0, -1]] = 0  # a dark border


def save(tmp_path, picture, name="image.png", **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def test_an_image_of_the_right_size_is_used_as_it_is(tmp_path):
    ink = read_image(save(tmp_path, Image.fromarray(INK)))
    assert ink.dtype == np.float32
    np.testing.assert_array_equal(ink, INK.astype(np.float32) / np.float32(255))


def test_white_paper_is_inverted(tmp_path):
    ink = read_image(save(tmp_path, Image.fromarray(255 - INK)))
    np.testing.assert_allclose(ink, INK / 255, atol=1e-6)


def test_the_border_tells_the_paper_not_the_whole(tmp_path):
    page = np.full((28, 28), 255, np.uint8)
    page[2:-2, 2:-2] = 0
    ink = read_image(save(tmp_path, Image.fromarray(page)))
    assert ink[14, 14] == 1
    assert ink[0, 0] == 0


def rgb():
    return Image.fromarray(INK).convert("RGB")


def alpha(mode):
    """Black ink drawn in the alpha channel alone: without the white below it all is black."""
    picture = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    picture.putalpha(Image.fromarray(INK))
    return picture.convert(mode)


MODES = {
    "1": (Image.fromarray(INK > 127), INK > 127, 0),
    "L": (Image.fromarray(INK), INK / 255, 1e-6),
    "P": (rgb().quantize(256, kmeans=1), INK / 255, 0.02),
    "RGB": (rgb(), INK / 255, 1e-6),
    "RGBA": (alpha("RGBA"), INK / 255, 0.005),
    "LA": (alpha("LA"), INK / 255, 0.005),
    "I;16": (Image.fromarray(INK.astype(np.uint16) * 257), INK / 255, 1e-6),
}


@pytest.mark.parametrize("mode", MODES)
def test_png_modes(tmp_path, mode):
    picture, expected, tolerance = MODES[mode]
    assert picture.mode == mode
    path = save(tmp_path, picture)
    with Image.open(path) as saved:
        assert saved.mode == mode
    np.testing.assert_allclose(read_image(path), expected, atol=tolerance)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    ink = np.zeros((28, 28), np.uint16)
    ink[14, 14] = 1000
    path = save(tmp_path, Image.fromarray(ink))
    np.testing.assert_allclose(read_image(path)[14, 14], 1000 / 65535, rtol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_a_transparent_color_is_white(tmp_path, mode):
    ink = np.zeros((28, 28), np.uint8)
    ink[10:18, 10:18] = 200
    picture = Image.fromarray(ink.astype(np.uint16) if mode == "I;16" else ink)
    picture = picture if picture.mode == mode else picture.convert(mode)
    clear = {"RGB": (0, 0, 0), "P": picture.getpixel((0, 0))}.get(mode, 0)
    expected = np.zeros((28, 28))
    expected[10:18, 10:18] = 1 - 200 / (65535 if mode == "I;16" else 255)
    path = save(tmp_path, picture, transparency=clear)
    np.testing.assert_allclose(read_image(path), expected, atol=0.005)


def test_colors_are_weighed_by_their_luminance(tmp_path):
    page = np.zeros((28, 28, 3), np.uint8)
    for row, color in enumerate(np.eye(3, dtype=np.uint8) * 255, start=10):
        page[row, 10:18] = color
    ink = read_image(save(tmp_path, Image.fromarray(page)))
    np.testing.assert_allclose(ink[10:13, 14], [0.299, 0.587, 0.114], atol=0.003)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.jpg"), ("RGB", "a.jpeg"), ("CMYK", "a.jpg"), ("RGB", "a.bmp"), ("P", "a.gif")],
)
def test_other_formats(tmp_path, mode, name):
    page = np.full((28, 28), 255, np.uint8)
    page[8:16, 8:16] = 0
    path = save(tmp_path, Image.fromarray(page).convert("RGB").convert(mode), name)
    np.testing.assert_allclose(read_image(path), 1 - page / 255, atol=0.05)


def test_the_content_counts_not_the_suffix(tmp_path):
    save(tmp_path, Image.fromarray(INK)).rename(tmp_path / "image.txt")
    assert read_image(tmp_path / "image.txt").shape == (28, 28)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(INK), Image.new("L", (28, 28), 255)]
    path = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(read_image(path), INK / 255, atol=0.02)


def test_a_turned_photo_is_set_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    path = save(tmp_path, Image.fromarray(INK), exif=exif)
    np.testing.assert_allclose(read_image(path), INK[::-1, ::-1] / 255, atol=1e-6)


def test_a_wide_image_is_padded_with_its_paper(tmp_path):
    page = np.full((40, 120), 230, np.uint8)
    page[:, 58:62] = 30
    ink = read_image(save(tmp_path, Image.fromarray(page)), shape=(28, 28))
    paper = 1 - 230 / 255
    np.testing.assert_allclose(ink[[0, 8, 18, 27]], paper, atol=1e-3)
    np.testing.assert_allclose(ink[9:18][:, [0, 27]], paper, atol=1e-3)
    assert (ink[9:18, 13:15] > 0.4).all()


def test_dark_padding_stays_dark(tmp_path):
    page = np.full((10, 2), 20, np.uint8)
    page[3:7] = 200
    ink = read_image(save(tmp_path, Image.fromarray(page)), shape=(10, 6))
    np.testing.assert_allclose(ink[:, [0, 5]], 20 / 255, atol=1e-6)
    np.testing.assert_allclose(ink[5, 2:4], 200 / 255, atol=1e-6)


def test_shrinking_averages(tmp_path):
    page = np.zeros((280, 280), np.uint8)
    page[40:240:2, 40:240] = 255  # stripes that picking every tenth row would show or miss whole
    ink = read_image(save(tmp_path, Image.fromarray(page)))
    np.testing.assert_allclose(ink[8:20, 8:20], 0.5, atol=0.06)
    assert ink.min() >= 0
    assert ink.max() <= 1


def test_growing_to_other_shapes(tmp_path):
    path = save(tmp_path, Image.fromarray(INK))
    for shape in ((56, 56), (8, 8), (5, 40), (1, 1)):
        ink = read_image(path, shape=shape)
        assert (ink.shape, ink.dtype) == (shape, np.float32)


def test_a_digit_of_the_data_set_survives(tmp_path):
    digit = load_dataset().test.inputs[0].reshape(8, 8)
    page = Image.fromarray(((1 - digit) * 255).astype(np.uint8)).resize((80, 80), 0)
    ink = read_image(save(tmp_path, page), shape=(8, 8))
    assert np.corrcoef(ink.ravel(), digit.ravel())[0, 1] > 0.95


def test_a_long_strip_takes_no_square_of_its_length(tmp_path):
    path = save(tmp_path, Image.new("1", (60_000, 1)))
    assert read_image(path).shape == (28, 28)


def png(width, height, data=b"\0"):
    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def whole(name, mode="L"):
    file = io.BytesIO()
    Image.fromarray(INK).convert(mode).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image that can be read, .*; give a PNG, JPEG, BMP or GIF file"),
        (b"hello, world" * 20, "not an image"),
        (whole("TIFF"), "not an image"),
        (whole("WEBP", "RGB"), "not an image"),
        (whole("PPM"), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (whole("PNG")[:200], "truncated or damaged image"),
        (whole("JPEG")[:-300], "truncated or damaged image"),
        (whole("BMP")[:-30], "truncated or damaged image"),
        (whole("GIF")[:-300], "truncated or damaged image"),
        (png(0, 5), "one without pixels"),
        (png(5, 0), "one without pixels"),
        (whole("BMP")[:18] + bytes(8) + whole("BMP")[26:], "one without pixels"),
        (png(8000, 8000), "8000 by 8000 pixels, over the limit of 50000000"),
        (png(40000, 40000), "over the limit of 50000000 pixels"),
    ],
)
def test_bad_files_are_named(tmp_path, data, words):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_the_pixel_limit_comes_before_decoding(tmp_path, monkeypatch):
    path = save(tmp_path, Image.fromarray(INK))
    monkeypatch.setattr(image, "MAX_PIXELS", 28 * 28)
    read_image(path)
    monkeypatch.setattr(image, "MAX_PIXELS", 28 * 28 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="28 by 28 pixels, over the limit of 783"):
        read_image(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file; give the path of an image"):
        read_image(tmp_path / "nix.png")
    with pytest.raises(DataError, match="is a folder; give the path of an image"):
        read_image(tmp_path)


@pytest.mark.parametrize("shape", [(0, 28), (28,), (28, 28, 1)])
def test_bad_shapes(tmp_path, shape):
    with pytest.raises(DataError, match="is not a height and a width"):
        read_image(save(tmp_path, Image.fromarray(INK)), shape=shape)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP", "GIF"])
def test_no_damage_raises_anything_else(tmp_path, name):
    good = whole(name, "P" if name == "GIF" else "L")
    path = tmp_path / "bad"
    for at in range(0, min(len(good), 1500), 4):
        for data in (good[:at], good[:at] + bytes([good[at] ^ 0xA5]) + good[at + 1 :]):
            path.write_bytes(data)
            try:
                ink = read_image(path)
            except DataError:
                continue
            assert ink.shape == (28, 28)
            assert np.isfinite(ink).all()


def test_an_image_too_short_for_its_pixels_takes_no_memory_for_them(tmp_path):
    """Pillow takes what is missing for black, where the compressed bytes end as they should."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 7000, 7000, 8, 0, 0, 0, 0)
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with bounded(megabytes=2), pytest.raises(DataError, match="too short for 7000 by 7000 pixels"):
        read_image(path)


def test_the_emptiest_image_is_long_enough(tmp_path):
    blank = Image.new("1", (2000, 2000))
    for name in ("a.png", "a.gif", "a.bmp"):
        assert not read_image(save(tmp_path, blank, name, optimize=True)).any()
    assert read_image(save(tmp_path, blank.convert("L"), "a.jpg", quality=1)).max() < 0.01
