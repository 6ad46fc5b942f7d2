"""Distances of pairs of rows from the rows themselves, to all digits that float64 holds.

A distance is the same from both sides, whatever the processor and wherever in an array the pair
stands.
"""

import numpy as np

# Cosine distances below it are what rounding leaves of rows of one direction.
_NO_ANGLE = 1e-29


def squared(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared L2 distances of pairs: float64 [n], correct to the last digit.

    So the order of additions does not matter, and distances that are equal on paper are equal.

    Compensated, by Knuth's two-sum, as in Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005,
    algorithm 4.4.

    Args:
      query, gallery: float64 [n, d].
    """
    total, rest = np.zeros(len(query)), np.zeros(len(query))
    for value in np.ascontiguousarray(np.square(query - gallery).T):
        added = total + value
        seen = added - total
        rest += (total - (added - seen)) + (value - seen)
        total = added
    return total + rest


def cosine(
    query: np.ndarray, gallery: np.ndarray, of_query: np.ndarray, of_row: np.ndarray
) -> np.ndarray:
    """1 - cosine of pairs: float64 [n], rounded to 44 bits; 1 where a row is zero.

    What is equal on paper is equal up to rounding of lengths, hence the 44 bits.

    The difference of the unit vectors, times the mean length h, is (q - g) + x (q / |q| + g / |g|)
    with x = (|g| - |q|) / 2, and |g| - |q| = (g - q) (g + q) / (|g| + |q|). So taken it keeps its
    digits where the rows are nearly parallel.

    Args:
      query, gallery: float64 [n, d].
      of_query, of_row: float64 [n], their lengths.
    """
    # Brings both to about one length, by a power of two.
    exponent = np.frexp(of_query)[1] - np.frexp(of_row)[1]
    gallery, of_row = np.ldexp(gallery, exponent[:, None]), np.ldexp(of_row, exponent)
    zero = (of_query == 0) | (of_row == 0)
    of_query, of_row = np.where(zero, 1, of_query), np.where(zero, 1, of_row)
    apart = query - gallery
    both = of_query + of_row
    longer = -np.einsum("ij,ij->i", apart, query + gallery) / both
    mean = query / of_query[:, None] + gallery / of_row[:, None]
    apart += longer[:, None] / 2 * mean
    distance = np.einsum("ij,ij->i", apart, apart) / (both**2 / 2)
    distance = np.where(zero, 1, np.where(distance < _NO_ANGLE, 0, distance))
    large = distance * (2.0**9 + 1)  # Veltkamp's splitting, which rounds to 53 - 9 bits.
    return large - (large - distance)


def lengths(rows: np.ndarray) -> np.ndarray:
    """float64 [n], of float [n, d]."""
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
