"""Training: one pure step, its parallel wrappers, the loop and the data. It knows no model.

Exports stand in `__init__.pyi` and load when they are first used: reading data needs no JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
