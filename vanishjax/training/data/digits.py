"""The digits that come with the package: 1,797 handwritten ones of 8 by 8 pixels, 0 to 16.

They are the test set of the UCI data set "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49), under the licence CC BY 4.0.
digits.npz was made from scikit-learn's copy, changed in nothing but the dtype:

    digits = sklearn.datasets.load_digits()
    numpy.savez_compressed(
        "digits.npz",
        x=digits.images.astype("uint8"), y=digits.target.astype("uint8"),
        source=SOURCE, licence=LICENCE,
    )
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from vanishjax.training.data.raw import RawData, RawExamples

SOURCE = (
    "UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (test set),"
    " E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49"
)
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"


def read_digits() -> RawData:
    """Reads the handwritten digits that come with the package.

    Returns:
      All of them as the training part.

    Example:
      >>> data = read_digits()
      >>> data.train.inputs.shape, int(data.train.inputs.max()), data.train.labels[:5]
      ((1797, 8, 8), 16, array([0, 1, 2, 3, 4], dtype=uint8))
    """
    with (
        resources.files(__package__).joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        examples = RawExamples(arrays["x"], arrays["y"], "digits: x", "digits: y")
    return RawData("digits", examples, classes=10, pixel_max=16.0)
