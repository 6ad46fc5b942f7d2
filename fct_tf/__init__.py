"""Change the embedding model of a retrieval system without re-embedding its gallery."""

import os

__version__ = "0.1.0"

# TensorFlow's C++ notes (no GPU, processor features, unknown graph attributes) would drown
# progress bars and messages; what goes wrong is raised in Python too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
