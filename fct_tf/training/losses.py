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
    log_p = tf.nn.log_softmax(as_float(logits))
    own = tf.gather(log_p, labels, axis=1, batch_dims=1)
    if not smoothing:
        return -own
    return -(1.0 - smoothing) * own - smoothing * tf.reduce_mean(log_p, axis=1)


def as_float(values: tf.Tensor) -> tf.Tensor:
    """At least float32: losses are not computed in bfloat16."""
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def mse(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Mean squared error over all elements of each example (FCT, arXiv 2112.02805, eq. 4).

    Args:
      a, b: float [batch, ...], the same shape.

    Returns:
      float32 [batch].
    """
    difference = as_float(a) - tf.cast(b, as_float(a).dtype)
    return tf.reduce_mean(tf.square(difference), axis=list(range(1, len(difference.shape))))


def discriminative(logits: tf.Tensor, labels: tf.Tensor, smoothing: float = 0.1) -> tf.Tensor:
    """Is the transformed embedding classified right? FastFill's term (arXiv 2303.04766).

    Cross-entropy under the frozen new classifier (`margins.frozen_logits`), 0 where an example
    has no class that the classifier knows: what it is added to is then all there is.

    Args:
      logits: float [batch, classes] of transformed embeddings.
      labels: int [batch], the class's number in the classifier; -1: it has none.
      smoothing: of the labels.

    Returns:
      float32 [batch].
    """
    loss = cross_entropy(logits, tf.maximum(labels, 0), smoothing)
    return tf.where(labels >= 0, loss, tf.zeros_like(loss))


def heteroscedastic(loss: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """exp(-s) l / 2 + s / 2, the loss of FastFill's uncertainty (arXiv 2303.04766).

    The negative log-likelihood, up to a constant, of an error whose squared size is l where a
    Gaussian of variance exp(s) is expected; for a given l it is least at s = log l. Gradients
    flow into both.

    Args:
      loss: float [batch], l >= 0.
      log_variance: float [batch], s.

    Returns:
      float32 [batch].
    """
    loss = as_float(loss)
    log_variance = tf.cast(log_variance, loss.dtype)
    return 0.5 * (tf.exp(-log_variance) * loss + log_variance)


def nt_xent(first: tf.Tensor, second: tf.Tensor, temperature: float = 0.1) -> tf.Tensor:
    """SimCLR's normalised temperature-scaled cross-entropy (arXiv 2002.05709, equation 1).

    For an anchor a with the other view p of its image, over all 2 B - 1 other vectors k:
    -log(exp(cos(a, p) / t) / sum_k exp(cos(a, k) / t)). An example's value is the mean of its
    two anchors, so that the mean over examples is the paper's loss.

    In a replica context the other replicas' vectors are negatives too; gradients flow back to
    them. Every replica must hold the same number of examples.

    Args:
      first, second: float [batch, d], two views of the same images; normalised here.
      temperature: t > 0.

    Returns:
      float32 [batch].
    """
    batch = tf.shape(first)[0]
    anchors = [tf.nn.l2_normalize(as_float(z), axis=1) for z in (first, second)]
    gathered, replica = _over_replicas(anchors)
    keys = tf.concat(gathered, axis=0)
    others = tf.shape(gathered[0])[0]
    own = tf.range(batch) + replica * batch  # where this replica's first views are among the keys

    def anchor_loss(z: tf.Tensor, itself: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(z, keys, transpose_b=True) / temperature
        # An anchor is no negative of itself.
        logits -= 1e9 * tf.one_hot(itself, 2 * others, dtype=logits.dtype)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positive, logits=logits)

    return 0.5 * (
        anchor_loss(anchors[0], own, own + others) + anchor_loss(anchors[1], own + others, own)
    )


def _over_replicas(tensors: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The tensors of all replicas one after the other, and the number of this replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors, tf.constant(0)
    gathered = [context.all_gather(tensor, axis=0) for tensor in tensors]
    return gathered, tf.cast(context.replica_id_in_sync_group, tf.int32)
