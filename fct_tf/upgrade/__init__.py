"""A transformation over stored rows, and the verdict on what comes of it."""
