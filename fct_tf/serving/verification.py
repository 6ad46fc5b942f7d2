"""Whether a SavedModel answers what the models that it was made from compute.

It is loaded as TF Serving loads it, into a C++ session, and each warm-up request is run there.
A row's error is the length of the difference over the length of the row that is expected, or over
the mean length where a row is shorter than that: of a row near zero rounding leaves nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.models import about
from fct_tf.models import info as infos
from fct_tf.models.signatures import Served, Tensors
from fct_tf.serving.errors import ServingError
from fct_tf.serving.servable import Servable
from fct_tf.serving.warmup import Request


def verify(
    directory: Path,
    served: Served,
    pools: Mapping[str, Tensors],
    wanted: Sequence[Request],
    tolerance: float,
) -> dict[str, Any]:
    """Compares every row of every request.

    Args:
      directory: with `saved_model.pb`.
      served: tells what to expect.
      pools: the different rows of each signature.
      wanted: the requests to run.
      tolerance: the largest error of a row that is accepted.

    Returns:
      `signatures`, `requests`, `rows`, `largest_row_error` and `tolerance`.

    Raises:
      InputError: a request fails, an output is not finite, a row is too far off. Names it.
    """
    expected = {name: served.expected(name, inputs) for name, inputs in pools.items()}
    largest, rows = 0.0, 0
    try:
        servable = Servable(served.info["name"], 0, str(directory))
    except ServingError as error:
        raise InputError(f"not published: does not load ({one_line(error)})") from None
    try:
        for request in wanted:
            where = f"not published: signature {request.signature}, {len(request.places)} rows"
            try:
                outputs = servable.run(request.signature, request.inputs)
            except ServingError as error:
                raise InputError(f"{where}: {one_line(error)}") from None
            if request.signature == about.SIGNATURE:
                if about.read(outputs, where) != infos.read_info(directory):
                    raise InputError(f"{where}: answers with another description")
                continue
            for name, values in expected[request.signature].items():
                errors = row_errors(outputs[name], values[request.places], f"{where}, {name}")
                row = int(errors.argmax())
                if errors[row] > tolerance:
                    raise InputError(
                        f"{where}: {name} of row {row} is off by {errors[row]:.2g} of its length "
                        f"from what the model computes, {tolerance:g} is accepted (``tolerance``)"
                    )
                largest = max(largest, float(errors[row]))
            rows += len(request.places)
    finally:
        servable.close()
    return {
        "signatures": sorted({request.signature for request in wanted}),
        "requests": len(wanted),
        "rows": rows,
        "largest_row_error": largest,
        "tolerance": tolerance,
    }


def row_errors(found: np.ndarray, expected: np.ndarray, where: str = "") -> np.ndarray:
    """The error of each row, see the module; infinite where ids or row numbers differ.

    Args:
      found, expected: [n, ...] of one shape.
      where: for messages.

    Returns:
      float64 [n].

    Raises:
      InputError: other shapes, values that are not finite.
    """
    if found.shape != expected.shape:
        raise InputError(f"{where}: has shape {list(found.shape)}, not {list(expected.shape)}")
    if expected.dtype.kind not in "f":
        same = (found == expected).reshape(len(expected), -1).all(1)
        return np.where(same, 0.0, np.inf)
    found, expected = (x.astype(np.float64).reshape(len(x), -1) for x in (found, expected))
    wrong = np.flatnonzero(~np.isfinite(found).all(1))
    if len(wrong):
        raise InputError(f"{where}: row {wrong[0]} is NaN or infinite")
    length = np.linalg.norm(expected, axis=1)
    length = np.maximum(length, length.mean())
    return np.linalg.norm(found - expected, axis=1) / np.where(length > 0, length, 1)
