"""A small SavedModel with signatures of every kind that a server meets."""

from pathlib import Path

import tensorflow as tf

v1 = tf.compat.v1


def write(path: Path, *, plus: float = 2.0) -> Path:
    """Writes the SavedModel; `plus` tells versions apart.

    Signatures:
      serving_default: x float32, any shape -> y = x / 2 + plus.
      dense: x float32 [n, 3] -> embedding [n, 2], log_variance [n].
      two: a float32 [n, d], b int32 [n] -> sum [n, d], b.
      text: s string [n] -> s, s_bytes.
      total: x float32 -> total, a scalar.
      uneven: x float32 [n] -> x, first [1].
      same: x float32 -> y = x.
      double, half, bool: x of that dtype -> y = x.
      nothing: without inputs -> one.
      slow: n int32 -> n, after so many steps.
      classify, regress: of tf.Examples with a feature x.
    """
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        any_shape = v1.placeholder(tf.float32, None, name="x")
        y = tf.identity(any_shape / 2 + plus, name="y")
        rows = v1.placeholder(tf.float32, None, name="rows")
        embedding = tf.matmul(rows, tf.constant([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        a, b = v1.placeholder(tf.float32, None), v1.placeholder(tf.int32, [None])
        text = v1.placeholder(tf.string, [None], name="s")
        steps = v1.placeholder(tf.int32, [], name="n")
        counted = tf.while_loop(
            lambda i: i < steps, lambda i: (i + 1,), (tf.constant(0),), parallel_iterations=1
        )
        serialized = v1.placeholder(tf.string, [None], name="examples")
        x = v1.io.parse_example(serialized, {"x": v1.io.FixedLenFeature([], tf.float32)})["x"]
        scores = tf.stack([x, 1 - x], axis=1)
        classes = tf.tile([["yes", "no"]], [tf.size(x), 1])

        def predict(inputs, outputs):
            infos = [
                {name: v1.saved_model.build_tensor_info(tensor) for name, tensor in side.items()}
                for side in (inputs, outputs)
            ]
            return v1.saved_model.build_signature_def(*infos, "tensorflow/serving/predict")

        signatures = {
            "serving_default": predict({"x": any_shape}, {"y": y}),
            "dense": predict(
                {"x": rows}, {"embedding": embedding, "log_variance": tf.reduce_sum(rows, 1)}
            ),
            "two": predict(
                {"a": a, "b": b}, {"sum": a + tf.cast(b, tf.float32)[:, None], "b": tf.identity(b)}
            ),
            "text": predict({"s": text}, {"s": tf.identity(text), "s_bytes": tf.identity(text)}),
            "total": predict({"x": any_shape}, {"total": tf.reduce_sum(any_shape)}),
            "uneven": predict({"x": any_shape}, {"x": any_shape + 0, "first": any_shape[:1]}),
            "same": predict({"x": any_shape}, {"y": tf.identity(any_shape)}),
            "nothing": predict({}, {"one": tf.constant([1.0])}),
            "slow": predict({"n": steps}, {"n": tf.identity(counted[0])}),
            "classify": v1.saved_model.classification_signature_def(serialized, classes, scores),
            "regress": v1.saved_model.regression_signature_def(serialized, x * 2),
        }
        for dtype in (tf.double, tf.half, tf.bool):
            of_dtype = v1.placeholder(dtype, None)
            outputs = {"y": tf.identity(of_dtype)}
            name = {"float64": "double", "float16": "half"}.get(dtype.name, dtype.name)
            signatures[name] = predict({"x": of_dtype}, outputs)
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    return path
