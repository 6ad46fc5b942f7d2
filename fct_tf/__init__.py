"""Change the embedding model of a retrieval system without re-embedding its gallery."""

__version__ = "0.1.0"
