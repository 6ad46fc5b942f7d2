"""Change the embedding model of a retrieval system without re-embedding its gallery."""

import os

__version__ = "0.1.0"

# TensorFlow's C++ notes (oneDNN, processor features) would drown progress bars and messages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
