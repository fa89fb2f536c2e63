"""Residual and dense networks for Keras 3, as their papers describe them.

The public names are imported when they are first used: `__init__.pyi` says from where.
"""

import os

import lazy_loader

__version__ = "0.1.0"

# TensorFlow turns on its oneDNN kernels, its fastest on CPUs, by itself on some processors only. It reads this
# when it is loaded, so it has no effect where that has happened already.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
