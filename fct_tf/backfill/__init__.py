"""Which rows to re-embed first, the job that does it, and the curves that say what it brings."""
