"""Classify an image with a trained network.

The image may have any size, mode and light, as a photograph of a digit on paper has: the ink is
found, and framed as that of the training images is. What was done is said.
"""

import argparse
import math
from pathlib import Path

from vanishjax.cli.options import file_path, warn
from vanishjax.cli.trained import MODEL_FILE
from vanishjax.cli.trained import NAME as TRAIN

NAME = "predict"
HELP = "classify an image with a trained network"
FIELDS = {
    "image": "its path",
    "class": "the likeliest",
    "probabilities": "one for each class",
    "prepared": "what was done to the image, in words",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this command's options."""
    parser.add_argument(
        "image", type=file_path, metavar="IMAGE", help="a PNG, JPEG, BMP or GIF file"
    )
    parser.add_argument(
        "--model",
        type=file_path,
        metavar="DIR|FILE",
        help=f"the folder of a training run, or its {MODEL_FILE} (default: the newest under runs/)",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="fit the whole image into the network's frame, and look for no ink",
    )
    parser.add_argument("--json", action="store_true", help="print the probabilities as JSON")


def run(options: argparse.Namespace) -> int:
    """Reads the image, runs the network and prints class probabilities."""
    from vanishjax.cli.output import latest_folder

    given = latest_folder(TRAIN, MODEL_FILE) if options.model is None else Path(options.model)
    if given is None:
        raise ValueError(
            f"no trained model under runs/; run `vanishjax {TRAIN}` first, or name one with --model"
        )
    path = given / MODEL_FILE if given.is_dir() else given

    from vanishjax.training.data import Framing, Normalization, frame_ink, read_gray, whole_image

    # The image is looked at before the heavy imports: a wrong path should cost no wait.
    gray = read_gray(options.image)

    import jax
    import jax.numpy as jnp
    import numpy as np

    from vanishjax.cli.output import to_json
    from vanishjax.cli.terminal import Terminal
    from vanishjax.model_file import load_model
    from vanishjax.report import text

    model = load_model(path)
    description = model.description
    if description.get("image_shape") is None:
        raise ValueError(
            f"{path}: was trained on {description.get('data')}, whose inputs are no images; train "
            "on images"
        )
    if description.get("classes") is None:
        raise ValueError(f"{path}: predicts a number, not classes; train with --loss cross_entropy")
    shape, framing = tuple(description["image_shape"]), description.get("framing")
    done: list[str] = []
    if options.as_is or framing is None:
        image = whole_image(gray, shape)
    else:
        image, done = frame_ink(gray, shape, Framing.from_dict(framing))
    pixels = image.reshape(1, -1) * (description.get("pixel_max") or 1)
    if "normalization" not in description:
        raise ValueError(f"{path}: has no normalization: offset and scale are missing")
    inputs = Normalization.from_dict(description["normalization"]).apply(pixels)
    if not np.isfinite(inputs).all():
        raise ValueError(f"{path}: its normalization takes the image's pixels beyond float32")
    logits = model.predict_fn(model.params, jnp.asarray(inputs))[0]
    probabilities = [float(p) for p in jax.nn.softmax(logits.astype(jnp.float32))]
    if not all(map(math.isfinite, probabilities)):
        raise ValueError(
            f"{path}: its output is not finite: its training diverged, or the file was changed; "
            "train anew"
        )
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    if options.json:
        result = {"image": options.image, "class": best, "probabilities": probabilities}
        print(to_json({**result, "prepared": done}))
    else:
        for line in done:
            warn(line)
        Terminal().print(text.probability_table(probabilities))
    return 0
