"""A whole model change from one experiment file: its stages, cases and comparisons."""
