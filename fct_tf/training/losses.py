"""Losses: pure functions from tensors to one float32 value per example; the caller reduces.

Under several replicas the caller divides the sum by the global batch size, because Keras'
optimizers sum gradients over replicas.
"""

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy with label smoothing.

    (1 - smoothing) * -log p[label] + smoothing * mean_c(-log p[c]), the form of arXiv
    1512.00567, section 7, that the FCT paper uses with smoothing 0.1.

    Args:
      logits: float [batch, classes].
      labels: int [batch], in 0..classes-1.
      smoothing: in [0, 1].

    Returns:
      float32 [batch].
    """
    log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    own = tf.gather(log_p, labels, axis=1, batch_dims=1)
    if not smoothing:
        return -own
    return -(1.0 - smoothing) * own - smoothing * tf.reduce_mean(log_p, axis=1)


def mse(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Mean squared error over all elements of each example (FCT, arXiv 2112.02805, eq. 4).

    Args:
      a, b: float [batch, ...], the same shape.

    Returns:
      float32 [batch].
    """
    difference = tf.cast(a, tf.float32) - tf.cast(b, tf.float32)
    return tf.reduce_mean(tf.square(difference), axis=list(range(1, len(difference.shape))))
