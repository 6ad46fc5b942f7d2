"""The space of a model: a fingerprint of what it computes, however it is saved.

Two things go into it:

1. the contents of the float tensors that lead to the output, variables or constants, as a set:
   the smallest change of a weight is another function, names and order are not;
2. what the network makes of a few fixed inputs: other layers, activations, strides, epsilons or
   wirings around the same weights are another function.

Outputs in float32 differ in their last digits from processor to processor and from a Keras file
to its export, so their rounding would. They are computed in float64 instead, by the same graph
with every float type in it replaced, and rounded to 2e-6 of the greatest output: rounding errors
are then a billion times smaller than a step, and the steps are not where round numbers lie.

So a Keras file, its `.h5`, its exports as SavedModels and a second export agree, also across
versions of Keras that write one layer as different operations, and across batch sizes, threads,
processors and arithmetic in bfloat16. What remains:

- One function, two fingerprints (the safe side): weights that were folded, cast or split, and
  graphs with an operation that float64 does not run (custom ones, quantised integers, JAX exports,
  lookup tables). The latter are known by the graph itself, names left out: there a Keras file and
  its SavedModel have two, two exports of one model still agree.
- Two functions, one fingerprint: they would have the very same weights and agree to six digits on
  noise, on a coarse and on a dark pattern, and differ on other images only.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.common.image_size import height_width
from fct_tf.models import graph, preprocess

STEP = 2e-6
REPEATS = 16  # A flip with probability 1/2 escapes them once in 65,536 times.
_FLOAT32_NOISE = 1e-4  # Share of the greatest output; what threads add up in another order.


def of_function(
    function: Callable[..., tf.Tensor],
    specs: Sequence[tf.TensorSpec],
    probes: Sequence[Sequence[np.ndarray]],
    name: str,
) -> str:
    """The fingerprint (hex SHA-256) of what `function` computes.

    Args:
      function: of one tensor per spec, to one tensor.
      specs: of its arguments.
      probes: arguments to try, float64 each; see `image_probes` and `vector_probes`.
      name: of the model, for messages.

    Raises:
      InputError: the function gives something else each time it is called.
    """
    traced = tf.function(function, input_signature=list(specs)).get_concrete_function()
    graph_def = traced.graph.as_graph_def()
    captured = [(inner.name, graph.captured_value(outer)) for outer, inner in traced.graph.captures]
    output = traced.outputs[0].name
    reached, tensors = graph.leading_to(graph_def, output)
    tensors += [value for name, value in captured if name.split(":")[0] in reached]
    weights = sorted(
        {tensors_sha256([t], None) for t in tensors if t is not None and graph.is_float(t)}
    )
    arguments = [tensor.name for tensor in traced.inputs[: len(specs)]]
    repeats = REPEATS * [probes[0]] if graph.draws(graph_def) else []
    try:
        asked = [*probes, *repeats]
        outputs = graph.outputs(graph_def, captured, arguments, output, asked)
    except Exception as error:  # TensorFlow raises whatever the operation gives rise to.
        logging.warning(
            "%s: cannot be computed in float64, its space is a fingerprint of the graph (%s)",
            name, one_line(error)[:200],
        )  # fmt: skip
        given = [tf.constant(a, spec.dtype) for a, spec in zip(probes[0], specs, strict=True)]
        _refuse_random([traced(*given).numpy() for _ in repeats], _FLOAT32_NOISE, name)
        return tensors_sha256([], [weights, graph.structure(graph_def, output)])
    _refuse_random([outputs[0], *outputs[len(probes) :]], STEP, name)
    steps, scale = rounded(outputs[: len(probes)])
    return tensors_sha256(steps, [weights, scale])


def _refuse_random(outputs: Sequence[np.ndarray], share: float, name: str) -> None:
    """Refuses outputs of one input that differ by more than a share of the greatest."""
    for other in outputs[1:]:
        room = share * np.abs(outputs[0]).max(initial=0)
        if np.abs(outputs[0] - other).max(initial=0) > room:
            raise InputError(
                f"{name}: gives other vectors each time it is asked: random augmentation or "
                "dropout is on inside; export it with training=False"
            )


def rounded(outputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Outputs as whole numbers of steps, int64, of 2e-6 of a power of 2, which comes second.

    It is the nearest one to the greatest output. The steps' edges lie where no round numbers are,
    which networks like to return: a rounding error moves nothing across them.
    """
    greatest = max(float(np.abs(output).max(initial=0)) for output in outputs)
    scale = 2.0 ** round(np.log2(greatest)) if 0 < greatest < np.inf else 1.0
    steps = [np.floor(output / (STEP * scale) + 0.2718) for output in outputs]
    whole = [np.nan_to_num(s, nan=2.0**60, posinf=2.0**61, neginf=-(2.0**61)) for s in steps]
    return [s.astype(np.int64) for s in whole], scale


def of_images(
    function: Callable[[tf.Tensor], tf.Tensor], settings: preprocess.Preprocessing, name: str
) -> str:
    """The fingerprint (hex SHA-256) of an embedding model behind its preprocessing.

    How images are resized is not in it; see `of`.

    Args:
      function: of preprocessed images, float32 [batch, height, width, 3], to embeddings.
      settings: how images are preprocessed.
      name: of the model, for messages.

    Raises:
      InputError: see `of_function`.
    """
    height, width = height_width(settings["size"])
    mean, std = np.array(settings["mean"]), np.array(settings["std"])
    probes = [[(image / 255 - mean) / std] for image in image_probes(height, width)]
    specs = [tf.TensorSpec([None, height, width, 3], tf.float32)]
    return of_function(function, specs, probes, name)


def of(function: str, settings: Any) -> str:
    """The space of what a function with this fingerprint makes of what the settings say."""
    return tensors_sha256([], [function, settings])


def image_probes(height: int, width: int) -> list[np.ndarray]:
    """Images to try, float64 [1, height, width, 3] of whole numbers 0..255, noise first.

    They are bytes of a hash function, the same on every machine and with every version.
    """
    places = np.ix_(np.arange(height) * 4 // height, np.arange(width) * 4 // width)
    coarse = _bytes("coarse", (4, 4, 3))[places]
    images = [_bytes("noise", (height, width, 3)), coarse, coarse // 8]
    return [image[None].astype(np.float64) for image in images]


def vector_probes(dims: Mapping[str, int]) -> list[list[np.ndarray]]:
    """Vectors to try: for each probe float64 [1, dim] by name, in the order of `dims`."""
    rows = [(_bytes(name, (1, dim)) - 127.5) / 64 for name, dim in dims.items()]
    return [rows, [row / 16 for row in rows], [row[:, ::-1] * 8 for row in rows]]


def tensors_sha256(tensors: Iterable[np.ndarray], settings: Any) -> str:
    """SHA-256 (hex) of the shape, dtype and little-endian bytes of tensors and JSON settings."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = np.ascontiguousarray(tensor).reshape(tensor.shape)
        digest.update(json.dumps([list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())
    digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()


def _bytes(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers 0..255 that belong to a name, int64."""
    digest = hashlib.shake_256(f"fct_tf {name}".encode()).digest(int(np.prod(shape)))
    return np.frombuffer(digest, np.uint8).reshape(shape).astype(np.int64)
