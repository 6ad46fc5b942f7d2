"""Approximate nearest neighbours: searchers, indexes of columns, and benchmarks of them."""
