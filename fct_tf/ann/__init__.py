"""Approximate nearest neighbours: ScaNN indexes of columns, kept alive through model changes."""
