"""Digits as a camera sees them: how many of 40 does a network know, with and without framing?

A 784-256-128-10 network is trained on MNIST. Test digits are then drawn as photographs: on paper
in uneven light or in a shadow, on gray paper, with a pencil, small in the frame, off center. Each
is given to it fitted into the frame as a whole, and with its ink found and framed as the training
images are (`vanishjax predict`, with and without --as-is).

    python -m benchmarks.photographs --data-dir FOLDER
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

from benchmarks import record
from vanishjax.cli import main as vanishjax
from vanishjax.model_file import load_model
from vanishjax.training.data import (
    Framing,
    Normalization,
    frame_ink,
    load_dataset,
    read_image,
)

DIGITS = 40


def enlarged(ink, factor):
    """A digit, so many times as large."""
    size = tuple(n * factor for n in ink.shape[::-1])
    small = Image.fromarray((255 * ink).astype(np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32) / 255


def light(rng, n):
    """A slope of light across a page."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:n, 0:n] / n - 0.5
    return 0.35 + 0.6 * (np.cos(angle) * x + np.sin(angle) * y + 0.7) / 1.4


def shadow(rng, n):
    """A page of which one side lies in a shadow."""
    y, x = np.mgrid[0:n, 0:n] / n
    lit = np.where(x + 0.3 * y > rng.uniform(0.4, 0.8), 115, 230).astype(np.uint8)
    return np.asarray(Image.fromarray(lit).filter(ImageFilter.GaussianBlur(6)), np.float32) / 255


def on_page(rng, page, ink, contrast=0.85, noise=0.01):
    """Dark ink on a lit page, with a camera's noise."""
    return page * (1 - contrast * ink) + rng.normal(0, noise, ink.shape)


def pencil(rng, ink):
    """Thin and pale strokes."""
    drawn = Image.fromarray((255 * enlarged(ink, 10)).astype(np.uint8))
    thin = drawn.filter(ImageFilter.MinFilter(9)).filter(ImageFilter.GaussianBlur(1.5))
    return on_page(rng, 0.92, np.asarray(thin, np.float32) / 255, 0.38, 0.015)


def placed(rng, ink, size, factor, starts):
    """A digit somewhere on a large page."""
    page = np.zeros((size, size), np.float32)
    drawn = enlarged(ink, factor)
    row, column = rng.choice(starts, 2)
    page[row : row + len(drawn), column : column + len(drawn)] = drawn
    return on_page(rng, 0.95, page)


KINDS = {
    "as scanned": lambda _, ink: ink,
    "uneven light": lambda rng, ink: on_page(rng, light(rng, 280), enlarged(ink, 10)),
    "in a shadow": lambda rng, ink: on_page(rng, shadow(rng, 280), enlarged(ink, 10)),
    "gray paper": lambda rng, ink: on_page(
        rng, rng.uniform(0.35, 0.65), enlarged(ink, 10), 0.75, 0.02
    ),
    "pencil": pencil,
    "small in the frame": lambda rng, ink: placed(rng, ink, 560, 5, range(180, 240)),
    "off center": lambda rng, ink: placed(rng, ink, 280, 6, (0, 1, 110, 111)),
}


def main():
    """Trains, photographs, counts, and writes photographs.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--data-dir", help="folder with MNIST's files")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = load_dataset("mnist", data_dir=options.data_dir, normalization="none")
    with tempfile.TemporaryDirectory() as folder:
        where = ["--data-dir", options.data_dir] if options.data_dir else []
        network = ["--hidden", "256,128", "--activation", "relu", "--epochs", "3"]
        vanishjax(["train", "--data", "mnist", *where, *network, "--out", f"{folder}/run"])
        model = load_model(Path(folder, "run", "model.safetensors"))
        normalization = Normalization.from_dict(model.description["normalization"])
        framing = Framing.from_dict(model.description["framing"])

        def predicted(image):
            inputs = normalization.apply(255 * image.reshape(1, -1))
            return int(jnp.argmax(model.predict_fn(model.params, jnp.asarray(inputs))))

        results = {}
        for kind, photograph in KINDS.items():
            right = {"as is": [], "framed": []}
            for seed in range(1 if options.quick else options.seeds):
                rng = np.random.default_rng(seed)
                chosen = rng.choice(len(data.test), DIGITS, replace=False)
                counts = dict.fromkeys(right, 0)
                for number in chosen:
                    ink = np.asarray(data.test.inputs[number], np.float32).reshape(28, 28) / 255
                    picture = (255 * photograph(rng, ink).clip(0, 1)).round().astype(np.uint8)
                    path = Path(folder, "photograph.png")
                    Image.fromarray(picture).save(path)
                    label = data.test.labels[number]
                    counts["as is"] += predicted(read_image(path, (28, 28))) == label
                    image, _ = frame_ink(picture.astype(np.float32) / 255, (28, 28), framing)
                    counts["framed"] += predicted(image) == label
                for name, count in counts.items():
                    right[name].append(int(count))
            results[kind] = {"digits": DIGITS, "right": right}
            print(kind, right, flush=True)
    settings = {"seeds": options.seeds, "quick": options.quick, "data": "mnist"}
    record.write("photographs", options.out, settings, results)


if __name__ == "__main__":
    main()
