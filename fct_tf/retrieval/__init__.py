"""Search in galleries and how good it is: metrics and exact search."""
