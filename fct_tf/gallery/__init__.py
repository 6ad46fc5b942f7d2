"""Galleries: tables of id, label and embedding columns, one column per embedding space."""

import os

# Read by Lance at import. Its warnings speak of files that it cleans up, not to users; errors
# reach them as exceptions.
os.environ.setdefault("LANCE_LOG", "error")
