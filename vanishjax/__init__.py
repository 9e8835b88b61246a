"""vanishjax keeps deep networks learning where gradients vanish.

Compose gradient transforms that never lose a gradient with optax's, and train Flax models of any
depth. What is exported stands in `__init__.pyi`; each name is loaded when it is first used, so
that importing the package costs nothing that the program doesn't need.
"""

import lazy_loader

from vanishjax.version import __version__  # noqa: F401  # as a library's own is looked for here

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
