"""Imported before anything that loads TensorFlow: asks it for its fastest CPU kernels.

TensorFlow turns its oneDNN kernels on by itself on some processors only. They are asked for on all,
unless the user has decided. Where TensorFlow is loaded already, this has no effect.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
