"""The caption workflow: draft, reword, review, export."""

import lazy_loader

# The names for other packages are in __init__.pyi; each module is imported when a name of it is used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
