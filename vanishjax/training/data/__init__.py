"""Data sets and images: read, checked, split and normalized."""

from vanishjax.training.data.dataset import Dataset, Examples, load_dataset
from vanishjax.training.data.download import fetch
from vanishjax.training.data.errors import DataError, DataWarning
from vanishjax.training.data.idx import read_idx, read_idx_folder
from vanishjax.training.data.image import read_gray, read_image, whole_image
from vanishjax.training.data.ink import Framing, frame_ink, measure_framing
from vanishjax.training.data.normalization import Normalization

__all__ = [
    "DataError",
    "DataWarning",
    "Dataset",
    "Examples",
    "Framing",
    "Normalization",
    "fetch",
    "frame_ink",
    "load_dataset",
    "measure_framing",
    "read_gray",
    "read_idx",
    "read_idx_folder",
    "read_image",
    "whole_image",
]
