"""A traced function's graph: what leads to its output, and what it computes in float64."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fct_tf.models import sessions

_LOW = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum}
_DOUBLE = tf.float64.as_datatype_enum
# Operations that know float32 only, and what their output is called.
_FLOAT_ONLY = {
    "ResizeBilinear": "resized_images",
    "ResizeBicubic": "resized_images",
    "ResizeArea": "resized_images",
    "ScaleAndTranslate": "resized_images",
    "CropAndResize": "crops",
    "LRN": "output",
}
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_INTEGERS = ("size", "crop_size", "box_ind")  # Of their inputs.


def captured_value(captured: tf.Tensor) -> np.ndarray | None:
    """The content of a captured tensor or variable; None where it is something else."""
    if captured.dtype != tf.resource:
        return captured.numpy()
    handle = captured._handle_data
    if handle is None or not handle.is_set:
        return None
    dtype = tf.as_dtype(handle.shape_and_type[0].dtype)
    return tf.raw_ops.ReadVariableOp(resource=captured, dtype=dtype).numpy()


def draws(graph_def: Any) -> bool:
    """Whether it holds an operation that may draw random numbers."""
    drawing = ("Random", "Multinomial", "TruncatedNormal")
    return any(name in node.op for body in _bodies(graph_def) for node in body for name in drawing)


def leading_to(graph_def: Any, output: str) -> tuple[set[str], list[np.ndarray | None]]:
    """What an output depends on: names of placeholders, and constants but for single numbers.

    A call of a function is followed from the output that is asked for to the inputs it needs, so
    that what the network returns beside it does not count.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    constants: list[np.ndarray | None] = []

    def follow(nodes: Mapping[str, Any], references: Iterable[str]) -> set[str]:
        stack, seen, leaves = list(references), set(), set()
        while stack:
            reference = stack.pop()
            name, _, place = reference.partition(":")
            if reference in seen or name.startswith("^"):
                continue
            seen.add(reference)
            node = nodes.get(name)
            if node is None or node.op == "Placeholder":
                leaves.add(name)
            elif node.op == "Const":
                value = tf.make_ndarray(node.attr["value"].tensor)
                constants.extend([value] if value.ndim else [])
            elif node.op in _CALLS:
                needed = through(node.attr["f"].func.name, int(place.rpartition(":")[2] or 0))
                stack.extend(node.input[number] for number in needed)
            else:
                stack.extend(node.input)
                for value in node.attr.values():  # Branches and loops.
                    for called in [value.func, *value.list.func]:
                        count = len(functions[called.name].ret) if called.name else 0
                        for number in range(count):
                            through(called.name, number)
        return leaves

    @functools.cache
    def through(name: str, place: int) -> list[int]:
        """The places of the inputs that an output of a function needs."""
        function = functions[name]
        result = function.ret[function.signature.output_arg[place].name]
        leaves = follow({node.name: node for node in function.node_def}, [result])
        inputs = [argument.name for argument in function.signature.input_arg]
        return [number for number, argument in enumerate(inputs) if argument in leaves]

    return follow({node.name: node for node in graph_def.node}, [output]), constants


def outputs(
    graph_def: Any,
    captured: list[tuple[str, np.ndarray | None]],
    arguments: list[str],
    output: str,
    probes: Iterable[Sequence[np.ndarray]],
) -> list[np.ndarray]:
    """What the graph returns in float64 for each probe."""
    graph_def = _in_double(graph_def)
    with tf.Graph().as_default() as graph:
        handles, initial = {}, []
        for place, (name, value) in enumerate(captured):
            if value is None:
                raise NotImplementedError(f"{name} is no variable")
            if is_float(value):
                value = value.astype(np.float64)
            inner = name.split(":")[0]
            is_variable = _node(graph_def, inner).attr["dtype"].type == tf.resource
            if not is_variable:
                handles[name] = tf.constant(value)
                continue
            handle = tf.raw_ops.VarHandleOp(
                dtype=value.dtype, shape=value.shape, shared_name=f"variable_{place}"
            )
            given = tf.compat.v1.placeholder(value.dtype, value.shape)
            assign = tf.raw_ops.AssignVariableOp(resource=handle, value=given)
            initial.append((assign, given, value))
            handles[name] = handle
        tf.graph_util.import_graph_def(graph_def, input_map=handles, name="f")
        options = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        options.graph_options.rewrite_options.disable_meta_optimizer = True
        sessions.start()
        with tf.compat.v1.Session(graph=graph, config=options) as session:
            for assign, given, value in initial:
                session.run(assign, {given: value})
            fed = [graph.get_tensor_by_name(f"f/{name}") for name in arguments]
            result = graph.get_tensor_by_name(f"f/{output}")
            return [session.run(result, dict(zip(fed, probe, strict=True))) for probe in probes]


def structure(graph_def: Any, output: str) -> str:
    """Digest of what leads to the output: operations, attributes and wiring; no names."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    digest_of: dict[str, str] = {}

    def body(nodes: Any, arguments: Sequence[str], returned: Sequence[str]) -> str:
        by_name = {node.name: node for node in nodes}
        digests = {name: f"argument {place}" for place, name in enumerate(arguments)}

        def digest(name: str) -> str:
            stack = [name]
            while stack:
                node = by_name.get(stack[-1])
                sources = [] if node is None else [i.lstrip("^").split(":")[0] for i in node.input]
                missing = [source for source in sources if source not in digests]
                if node is not None and missing:
                    stack.extend(missing)
                    continue
                current = stack.pop()
                if current in digests:
                    continue
                assert node is not None, current
                places = [i.partition(":")[2] for i in node.input]
                wired = [[digests[s], place] for s, place in zip(sources, places, strict=True)]
                digests[current] = _sha256([node.op, attributes(node), wired])
            return digests[name]

        parts = [reference.partition(":") for reference in returned]
        return _sha256([[digest(name), place] for name, _, place in parts])

    def attributes(node: Any) -> list[Any]:
        listed = []
        for key, value in sorted(node.attr.items()):
            if value.HasField("func"):
                listed.append([key, of(value.func.name)])
            elif not key.startswith("_") and key not in ("shared_name", "container"):
                listed.append([key, value.SerializeToString(deterministic=True).hex()])
        return listed

    def of(name: str) -> str:
        if name not in digest_of:
            function = functions[name]
            inputs = [argument.name for argument in function.signature.input_arg]
            returned = [function.ret[out.name] for out in function.signature.output_arg]
            digest_of[name] = body(function.node_def, inputs, returned)
        return digest_of[name]

    return body(graph_def.node, [], [output])


def is_float(value: np.ndarray) -> bool:
    return tf.as_dtype(value.dtype).is_floating


def _bodies(graph_def: Any) -> list[Any]:
    """The nodes of the graph, then those of each function that it calls."""
    return [graph_def.node, *(function.node_def for function in graph_def.library.function)]


def _node(graph_def: Any, name: str) -> Any:
    return next(node for node in graph_def.node if node.name == name)


def _in_double(graph_def: Any) -> Any:
    """A copy with float64 for every smaller float type."""
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    for function in copy.library.function:
        for argument in [*function.signature.input_arg, *function.signature.output_arg]:
            argument.type = _DOUBLE if argument.type in _LOW else argument.type
        function.arg_attr.clear()
        _drop_hints(function.attr)
    replacements: dict[str, Any] = {}
    for node in [node for body in _bodies(copy) for node in body]:
        _drop_hints(node.attr)
        node.device = ""
        for value in node.attr.values():
            if value.type in _LOW:
                value.type = _DOUBLE
            for place, kind in enumerate(value.list.type):
                value.list.type[place] = _DOUBLE if kind in _LOW else kind
            if value.HasField("tensor") and value.tensor.dtype in _LOW:
                wide = tf.make_ndarray(value.tensor).astype(np.float64)
                value.tensor.CopyFrom(tf.make_tensor_proto(wide))
        if node.op.startswith("FusedBatchNorm") or node.op in _FLOAT_ONLY:
            # A node may call a function by its name: references to its output stay as they are.
            function = _replacement(node)
            replacements[function.signature.name] = function
            node.op = function.signature.name
            node.attr.clear()
    copy.library.function.extend(replacements.values())
    return copy


def _drop_hints(attributes: Any) -> None:
    """Removes hints of speed and colocation: shapes and types that no longer hold."""
    for key in [key for key in attributes if key.startswith("_")]:
        del attributes[key]


def _replacement(node: Any) -> Any:
    """A function in float64, as a FunctionDef, for an operation that knows float32 only."""
    attributes = {key: value for key, value in node.attr.items() if key not in ("T", "U")}
    if node.op in _FLOAT_ONLY:
        name = _FLOAT_ONLY[node.op]
        operation = getattr(tf.raw_ops, node.op)
        settings = {key: getattr(v, v.WhichOneof("value")) for key, v in attributes.items()}
        keys = [key for key in operation.__signature__.parameters if key != "name"]
        inputs = [key for key in keys if key not in settings]
        dtypes = dict.fromkeys(inputs, tf.float64) | dict.fromkeys(_INTEGERS, tf.int32)
        dtypes[inputs[0]] = tf.as_dtype(node.attr["T"].type)

        def compute(*values: tf.Tensor) -> tf.Tensor:
            given = {
                key: tf.cast(value, tf.float32) if dtypes[key].is_floating else value
                for key, value in zip(inputs, values, strict=True)
            }
            return tf.cast(operation(**given, **settings), tf.float64)

        specs = [tf.TensorSpec(None, dtypes[key]) for key in inputs]
    else:
        if attributes["is_training"].b or attributes["data_format"].s not in (b"NHWC", b""):
            raise NotImplementedError("batch normalisation of a batch, or by channels first")
        name, epsilon = "y", attributes["epsilon"].f

        def compute(*values: tf.Tensor) -> tf.Tensor:
            x, gamma, beta, mean, variance = values
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)

        specs = [tf.TensorSpec(None, tf.float64)] * 5
    function = tf.function(compute, input_signature=specs).get_concrete_function().function_def
    (output,) = function.signature.output_arg
    returned = function.ret.pop(output.name)
    output.name = name
    function.ret[name] = returned
    settings_text = sorted(
        (key, value.SerializeToString().hex()) for key, value in attributes.items()
    )
    digest = hashlib.sha256(json.dumps([node.op, settings_text]).encode()).hexdigest()
    function.signature.name = f"{node.op}_in_double_{digest[:16]}"
    return function


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
