"""Search in galleries and how good it is: metrics, exact search, ScaNN."""
