"""The version of the package: the build, the commands and `vanishjax.__version__` read it here."""

__version__ = "0.2.0"
