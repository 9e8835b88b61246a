"""What a run looks like: text for a terminal, figures for a page.

Exports stand in `__init__.pyi` and load when they are first used: a verdict as text needs no rich.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
