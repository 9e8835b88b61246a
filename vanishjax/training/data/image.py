"""One handwritten character from an image file, as the network was trained to see it."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vanishjax.foreign import shown
from vanishjax.training.data.errors import DataError, most_inflated, regular_file
from vanishjax.training.data.raw import Array

FORMATS = ("PNG", "JPEG", "BMP", "GIF")
"""The decoders that may see the file; every other one is attack surface."""

MAX_PIXELS = 50_000_000
"""Largest image that is decoded."""

# What Pillow's decoders raise on damaged files, from reading many of them.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_image(path: str | Path, shape: tuple[int, int] = (28, 28)) -> Array:
    """Reads an image as bright ink on a dark ground.

    Transparency is laid on white, colors become gray, and an image on white paper (the median of
    its border is over one half) is inverted. An image of another size is fitted into the shape with
    antialiasing, and what its aspect leaves over takes the color of its paper.

    Args:
      path: PNG, JPEG, BMP or GIF file (of an animation, the first frame).
      shape: Height and width to return.

    Returns:
      float32 array of that shape, in [0, 1].

    Raises:
      DataError: If the file is missing, damaged, too large or not such an image.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "dash.png")
      ...     paper = Image.new("L", (4, 2), "white")
      ...     paper.putpixel((1, 1), 51)
      ...     paper.save(path)
      ...     read_image(path, shape=(2, 4))
      array([[0. , 0. , 0. , 0. ],
             [0. , 0.8, 0. , 0. ]], dtype=float32)
    """
    if len(shape) != 2 or min(shape) < 1:
        raise DataError(f"image shape {shape} is not a height and a width of at least 1")
    return whole_image(read_gray(path), shape)


def whole_image(gray: Array, shape: tuple[int, int]) -> Array:
    """All of an image in a frame, as bright ink on a dark ground: see `read_image`.

    Args:
      gray: `[height, width]`, from 0 for black to 1 for white.
      shape: Height and width to return.

    Returns:
      float32 array of that shape, in [0, 1].

    Example:
      >>> whole_image(np.ones((3, 3), np.float32), (1, 2))
      array([[0., 0.]], dtype=float32)
    """
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = float(np.median(border))
    if paper > 0.5:
        gray, paper = 1 - gray, 1 - paper
    return fitted(gray, shape, paper)


def read_gray(path: str | Path) -> Array:
    """Reads an image of any size as shades of gray; transparency is laid on white.

    Args:
      path: PNG, JPEG, BMP or GIF file (of an animation, the first frame).

    Returns:
      float32 `[height, width]`, from 0 for black to 1 for white.

    Raises:
      DataError: If the file is missing, damaged, too large or not such an image.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "white.png")
      ...     Image.new("RGB", (4, 2), "white").save(path)
      ...     read_gray(path).shape
      (2, 4)
    """
    path = regular_file(path, "an image")
    try:
        with warnings.catch_warnings():
            # Of bombs, where our limit is stricter, and of damage that it can read beyond.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: {width} by {height} pixels, over the limit of {MAX_PIXELS}; make"
                        " it smaller"
                    )
                # A bit a pixel is the least; what is missing Pillow may take for black.
                if width * height > 8 * most_inflated(path.stat().st_size):
                    raise DataError(
                        f"{path}: truncated or damaged image: too short for {width} by {height}"
                        " pixels; save it again"
                    )
                return _gray(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not an image that can be read, or one without pixels; give a"
            f" {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: over the limit of {MAX_PIXELS} pixels; make it smaller"
        ) from error
    except _DAMAGED as error:
        raise DataError(
            f"{path}: truncated or damaged image ({shown(error, 100)}); save it again"
        ) from error


def _gray(image: Image.Image) -> Array:
    if image.mode.startswith("I"):
        deep = np.asarray(image, np.int64)
        gray = (deep / 65535.0).clip(0, 1)
        transparent = image.info.get("transparency")
        return np.where(deep == transparent, 1.0, gray).astype(np.float32)
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colors)
    # By way of RGB, because Pillow turns CMYK and palettes straight into gray differently.
    return np.asarray(image.convert("RGB").convert("L"), np.float32) / 255


def fitted(gray: Array, shape: tuple[int, int], paper: float) -> Array:
    """The whole image in a frame; one of the frame's size as it is, of another scaled.

    Args:
      gray: `[height, width]`.
      shape: Height and width of the frame.
      paper: What fills the frame where the image's aspect leaves room.

    Returns:
      float32 array of the shape.

    Example:
      >>> fitted(np.ones((2, 2), np.float32), (1, 2), 0.0)
      array([[1., 0.]], dtype=float32)
    """
    if gray.shape == shape:
        return gray
    height, width = shape
    ratio = min(height / gray.shape[0], width / gray.shape[1])
    rows, columns = (max(1, round(size * ratio)) for size in gray.shape)
    small = Image.fromarray(gray).resize((columns, rows), Image.Resampling.BILINEAR)
    # Padded only now: to pad a strip of 1 by 10^7 pixels first would take 10^14 of them.
    framed = np.full(shape, paper, np.float32)
    top, left = (height - rows) // 2, (width - columns) // 2
    framed[top : top + rows, left : left + columns] = np.asarray(small).clip(0, 1)
    return framed
