"""Embedding networks, transformations between embedding spaces, and their files."""
