"""Photographs of ink: whatever the paper, the light and the place, the network sees the drawing."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vanishjax.training.data import (
    DataError,
    DataWarning,
    Framing,
    frame_ink,
    load_dataset,
    measure_framing,
)

SHAPE = (28, 28)
MNIST = Framing(size=20 / 28, row=0.5, column=0.5)
STROKES = {
    "seven": [(30, 30), (110, 30), (60, 130)],
    "ell": [(45, 20), (45, 130), (110, 130)],
    "zed": [(30, 30), (110, 30), (30, 125), (115, 125)],
    "bar": [(70, 20), (70, 135)],
}


def drawing(name, width=16):
    """Bright ink on black, 280 pixels wide, the stroke in the middle."""
    page = Image.new("L", (280, 280))
    points = [(x + 68, y + 62) for x, y in STROKES[name]]
    ImageDraw.Draw(page).line(points, fill=255, width=width, joint="curve")
    return np.asarray(page.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255


def uneven(ink, rng):
    y, x = np.mgrid[0:280, 0:280] / 280
    return (0.3 + 0.4 * x + 0.25 * y) * (1 - 0.85 * ink) + rng.normal(0, 0.01, ink.shape)


def gray_paper(ink, rng):
    return 0.45 - 0.35 * ink + rng.normal(0, 0.02, ink.shape)


def chalk(ink, rng):
    return 0.25 + 0.5 * ink + rng.normal(0, 0.02, ink.shape)


def pencil(ink, rng):
    return 0.9 - 0.3 * ink + rng.normal(0, 0.015, ink.shape)


def small(ink, rng):
    page = np.full((900, 700), 0.95)
    page[520:800, 60:340] -= 0.8 * ink
    return page


def off_center(ink, rng):
    return np.roll(0.95 - 0.85 * ink, (-50, 60), (0, 1))


def with_dirt(ink, rng):
    page = 0.9 - 0.8 * ink
    page[10:14, 250:255] = page[260:264, 15:18] = 0.2
    page[:, :4] = 0.1  # the table's edge
    return page


def alike(a, b):
    """The correlation of two images, whose places are rounded to whole pixels."""
    a, b = (Image.fromarray((255 * x).astype(np.uint8)) for x in (a, b))
    a, b = (np.asarray(x.filter(ImageFilter.GaussianBlur(1)), float) for x in (a, b))
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    return max(np.corrcoef(np.roll(a, by, (0, 1)).ravel(), b.ravel())[0, 1] for by in shifts)


@pytest.mark.parametrize("name", STROKES)
@pytest.mark.parametrize(
    "photograph", [uneven, gray_paper, chalk, pencil, small, off_center, with_dirt]
)
def test_a_photograph_shows_what_a_scan_does(photograph, name):
    rng = np.random.default_rng(0)
    scan, _ = frame_ink(drawing(name), SHAPE, MNIST)
    picture = photograph(drawing(name), rng).clip(0, 1).astype(np.float32)
    framed, done = frame_ink(picture, SHAPE, MNIST)
    assert framed.dtype == np.float32
    assert framed.shape == SHAPE
    assert 0 <= framed.min() <= framed.max() <= 1
    assert done
    assert alike(framed, scan) > 0.9
    rows, columns = np.nonzero(framed > 0.3)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 22


def test_an_image_that_is_framed_already_is_used_as_it_is():
    image, _ = frame_ink(drawing("zed"), SHAPE, MNIST)
    for gray, said in ((image, []), (1 - image, ["dark ink on white inverted"])):
        again, done = frame_ink(gray, SHAPE, MNIST)
        np.testing.assert_allclose(again, image, atol=1e-6)
        assert done == said


def test_paper_without_ink_is_said():
    for page in (np.full((90, 120), 0.7, np.float32), np.zeros(SHAPE, np.float32)):
        framed, done = frame_ink(page, SHAPE, MNIST)
        assert done[-1] == "found no ink"
        assert not framed.any()


def test_the_framing_of_a_data_set_is_measured():
    images = np.zeros((3, 28, 28))
    images[:, 4:24, 10:18] = 200
    found = measure_framing(images)
    assert found.to_dict() == pytest.approx({"size": 20 / 28, "row": 0.5, "column": 0.5})
    assert Framing.from_dict(found.to_dict()) == found
    assert measure_framing(255 - images) is None
    assert measure_framing(np.zeros((2, 4, 4))) is None
    assert load_dataset("digits").framing.size == 1.0
    for wrong in ({"size": 0.5}, {"size": 2, "row": 0.5, "column": 0.5}, [1]):
        with pytest.raises(ValueError, match="framing must hold"):
            Framing.from_dict(wrong)


def save(folder, labels):
    path = folder / "set.npz"
    np.savez(path, x=np.random.default_rng(0).random((len(labels), 3)), y=labels)
    return path


def test_classes_without_an_example_are_said(tmp_path):
    labels = np.tile([1, 2, 3], 20)
    with pytest.warns(DataWarning, match=r"1 of 4 classes .*\(0\); are they numbered from 1\?"):
        assert load_dataset(save(tmp_path, labels)).classes == 4
    with pytest.warns(DataWarning, match=r"5 of 9 classes have no training example \(1, 3, 5"):
        load_dataset(save(tmp_path, np.tile([0, 2, 4, 8], 20)))


def test_classes_stored_as_floats_are_said(tmp_path):
    path = save(tmp_path, np.tile([0.0, 1.0], 20))
    with pytest.warns(DataWarning, match="float64 are taken for classes 0 to 1"):
        load_dataset(path, targets="classes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(path).classes is None


@pytest.mark.parametrize("inside", ["MNIST/raw", "raw", "mnist"])
def test_where_the_files_of_mnist_may_lie(tmp_path, inside):
    with pytest.raises(DataError, match="missing"):
        load_dataset("mnist", data_dir=tmp_path)
    folder = tmp_path / inside
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 255, (n, 28, 28), np.uint8).tobytes()
        header = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, n]) + labels)
    assert len(load_dataset("mnist", data_dir=tmp_path).test) == 20
