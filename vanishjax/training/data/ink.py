"""Ink on paper: finds what was drawn in a photograph, and frames it as the training images are.

MNIST was made so: the ink cropped, its longer side scaled to 20 of 28 pixels, and its center of
mass put in the middle. What the images of a data set have in common is measured, not assumed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vanishjax.training.data.image import fitted
from vanishjax.training.data.raw import Array

# A photograph is looked at in this size at most: a digit in it need not be larger.
_LONGEST = 384
# A pixel is ink if it has this share of the strongest ink.
_INK = 0.35
# Ink is where the darkest parts differ from the paper by so many times its roughness, at least.
_ROUGHNESS = 4.0
# A spot smaller than this share of the largest is dirt.
_SPOT = 0.08
# An image within these, in pixels of the frame, is framed already.
_SHIFT, _SCALE = 1.0, 0.12
# Pixels further from the middle than this, of 1, are the border.
_BORDER = 0.75
# A scan's strongest ink is above this.
_STRONG = 0.75
# Ground is below this, and empty below that: of a scan a quarter at least is empty.
_GROUND, _EMPTY = 0.1, 0.02


@dataclasses.dataclass(frozen=True)
class Framing:
    """Where the ink lies in the images of a data set.

    Attributes:
      size: Longer side of the ink's box, as a share of the frame's.
      row: Where the center of mass lies, as a share of the frame's height.
      column: The same of its width.

    Example:
      >>> images = np.zeros((1, 8, 8)); images[0, 2:6, 4] = 1
      >>> measure_framing(images)
      Framing(size=0.5, row=0.5, column=0.5625)
    """

    size: float
    row: float
    column: float

    def to_dict(self) -> dict[str, float]:
        """As JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, given: Any) -> Framing:
        """From JSON; ValueError for numbers that can't be a framing."""
        try:
            numbers = {name: float(given[name]) for name in ("size", "row", "column")}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"framing must hold size, row and column, got {given!r}") from None
        if not all(0 < number <= 1 for number in numbers.values()):
            raise ValueError(f"framing must hold numbers between 0 and 1, got {numbers}")
        return cls(**numbers)


def measure_framing(images: Array, most: int = 2000) -> Framing | None:
    """How the ink lies in images, of which the first ones are looked at.

    Args:
      images: `[n, height, width]`, bright ink on a dark ground, in any unit.
      most: How many to look at.

    Returns:
      Medians over the images; None if their ground isn't dark, or nothing is on it.
    """
    looked_at = np.asarray(images[:most], np.float64)
    edges = [looked_at[:, [0, -1]].ravel(), looked_at[:, :, [0, -1]].ravel()]
    if not looked_at.size or np.median(np.concatenate(edges)) > _GROUND * looked_at.max():
        return None
    found = []
    for image in looked_at:
        top = image.max(initial=0.0)
        if top > 0:
            ink = np.where(image > _GROUND * top, image, 0.0)
            rows, columns = _box(ink > 0)
            size = max(
                (rows.stop - rows.start) / ink.shape[0],
                (columns.stop - columns.start) / ink.shape[1],
            )
            found.append((size, *_center(ink)))
    if not found:
        return None
    return Framing(*(float(value) for value in np.median(found, axis=0)))


def frame_ink(gray: Array, shape: tuple[int, int], framing: Framing) -> tuple[Array, list[str]]:
    """What was drawn, framed as the network knows it.

    Args:
      gray: `[height, width]`, 0 black to 1 white: dark ink on bright paper, or the other way round,
        in any light.
      shape: Height and width to return.
      framing: Of the training images.

    Returns:
      float32 array of that shape in [0, 1], bright ink on a dark ground, and what was done, in
      words; nothing if the image was as the training images are.
    """
    ink, done, clean = _ink(gray)
    mask = _drawn(ink > (_GROUND if clean else _INK))
    if not mask.any():
        return np.zeros(shape, np.float32), [*done, "found no ink"]
    rows, columns = _box(mask)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    frame = np.array(ink.shape)
    size = max(height / frame[0], width / frame[1])
    center = np.array(_center(np.where(mask, ink, 0)))
    wanted = np.array([framing.row, framing.column])
    shift = np.abs(center - wanted) * shape
    framed = (shift <= _SHIFT).all() and abs(size / framing.size - 1) <= _SCALE
    if clean and framed:
        return fitted(ink.astype(np.float32), shape, 0.0), done
    # A margin, for the soft edge of the strokes.
    margin = max(1, round(0.04 * max(height, width)))
    top, left = max(0, rows.start - margin), max(0, columns.start - margin)
    near = np.array(
        Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * margin + 1))
    )
    drawn = np.where(near > 0, ink, 0)[
        top : rows.stop + margin, left : columns.stop + margin
    ].astype(np.float32)
    ratio = framing.size * min(shape[0] / height, shape[1] / width)
    small = _resized(drawn, ratio, shape)
    small = (small / max(float(np.quantile(small[small > 0.05], 0.9)), 1e-6)).clip(0, 1)
    box = f"ink of {height} x {width} pixels in {ink.shape[0]} x {ink.shape[1]}"
    done.append(f"{box} scaled and centered as the training images are")
    return _placed(small, shape, wanted), done


def _resized(drawn: Array, ratio: float, shape: tuple[int, int]) -> Array:
    rows, columns = (
        max(1, min(round(n * ratio), m)) for n, m in zip(drawn.shape, shape, strict=True)
    )
    image = Image.fromarray(drawn).resize(
        (columns, rows), Image.Resampling.BOX if ratio < 1 else Image.Resampling.BICUBIC
    )
    return np.asarray(image).clip(0, 1)


def _placed(small: Array, shape: tuple[int, int], wanted: Array) -> Array:
    """Put on an empty frame with its center of mass where it should be, as far as it fits."""
    center = np.array(_center(small)) * small.shape
    starts = []
    for axis in (0, 1):
        start = round(float(wanted[axis] * shape[axis] - center[axis]))
        starts.append(int(np.clip(start, 0, shape[axis] - small.shape[axis])))
    framed = np.zeros(shape, np.float32)
    top, left = starts
    framed[top : top + small.shape[0], left : left + small.shape[1]] = small
    return framed


def _ink(gray: Array) -> tuple[Array, list[str], bool]:
    """The ink alone, 0 to 1, what had to be done for it, and whether it is as clean as a scan."""
    longest = max(gray.shape)
    if longest > _LONGEST:
        size = [max(1, round(n * _LONGEST / longest)) for n in gray.shape]
        gray = np.asarray(
            Image.fromarray(gray.astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
        )
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    for scan, done in ((gray, []), (1 - gray, ["dark ink on white inverted"])):
        edge = border if scan is gray else 1 - border
        empty = float(np.mean(scan <= _EMPTY))
        if empty >= 0.25 and np.median(edge) <= _GROUND and scan.max() >= _STRONG:
            return scan, done, True
    flat = _surface(gray)
    rest = gray - flat
    rough = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    dark = float(np.mean(rest**3)) < 0
    paper = np.maximum(flat, 1e-3) if dark else np.minimum(flat, 1 - 1e-3)
    ink = 1 - gray / paper if dark else (gray - paper) / (1 - paper)
    floor = _ROUGHNESS * rough / float(np.median(paper if dark else 1 - paper))
    strong = ink[ink > max(floor, 0.02)]
    if not len(strong):
        return np.zeros_like(gray), [], False
    top = max(float(np.quantile(strong, 0.8)), 1.5 * floor)
    low = min(floor, 0.5 * top) / 2
    ink = ((ink - low) / (top - low)).clip(0, 1)
    words = "dark ink on lighter paper" if dark else "bright ink on a darker ground"
    return ink, [f"{words}: light evened out, contrast stretched"], False


def _surface(gray: Array, rounds: int = 6) -> Array:
    """The paper's brightness: a quadratic surface through the pixels that lie near it."""
    y, x = (np.linspace(-1, 1, n) for n in gray.shape)
    y, x = np.broadcast_to(y[:, None], gray.shape), np.broadcast_to(x, gray.shape)
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).reshape(-1, 6)
    values = gray.reshape(-1).astype(np.float64)
    # What is drawn seldom lies along the border.
    use = (np.maximum(abs(x), abs(y)) > _BORDER).reshape(-1)
    fitted = values
    for _ in range(rounds):
        if use.sum() < 12:
            break
        fitted = basis @ np.linalg.lstsq(basis[use], values[use], rcond=None)[0]
        rest = np.abs(values - fitted)
        use = rest <= max(2.5 * 1.4826 * float(np.median(rest[use])), 0.01)
    return fitted.reshape(gray.shape)


def _drawn(mask: Array) -> Array:
    """The mask without dirt, nor what comes in from the border if there is anything else."""
    labels = _labels(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if not sizes.any():
        return np.zeros_like(mask)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    inner = sizes.copy()
    inner[edge] = 0
    if inner.max() >= 0.2 * sizes.max():
        sizes = inner
    kept = np.flatnonzero(sizes >= max(_SPOT * sizes.max(), 1))
    return np.isin(labels, kept)


def _labels(mask: Array) -> Array:
    """Connected parts, numbered from 1 (corners connect); 0 elsewhere."""
    labels = np.zeros(mask.shape, np.int64)
    number = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        number += 1
        labels[start] = number
        queue = [start]
        while queue:
            row, column = queue.pop()
            around = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
            fresh = mask[around] & (labels[around] == 0)
            if fresh.any():
                labels[around][fresh] = number
                rows, columns = np.nonzero(fresh)
                queue.extend(zip(rows + around[0].start, columns + around[1].start, strict=True))
    return labels


def _box(mask: Array) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _center(ink: Array) -> tuple[float, float]:
    """The center of mass, as shares of height and width."""
    total = float(ink.sum())
    rows, columns = ((np.arange(n) + 0.5) / n for n in ink.shape)
    return float(ink.sum(axis=1) @ rows) / total, float(ink.sum(axis=0) @ columns) / total
