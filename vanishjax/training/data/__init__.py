"""Data sets and images: read, checked, split and normalised."""

from vanishjax.training.data.dataset import Dataset, Examples, load_dataset
from vanishjax.training.data.download import fetch
from vanishjax.training.data.errors import DataError
from vanishjax.training.data.idx import read_idx, read_idx_folder
from vanishjax.training.data.image import read_image
from vanishjax.training.data.normalization import Normalization

__all__ = [
    "DataError",
    "Dataset",
    "Examples",
    "Normalization",
    "fetch",
    "load_dataset",
    "read_idx",
    "read_idx_folder",
    "read_image",
]
