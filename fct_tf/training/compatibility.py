"""Losses that make a new model's embeddings comparable with those of an old one.

Each is a pure function to one float32 value per example, which the caller sums and divides by
the global batch size. The old model is frozen: no gradient flows to its classifier or its
embeddings. Embeddings of another size go through `match_dims` first. Regression onto the old
embeddings (`l2`) is `losses.mse`.

Over several replicas, what a loss takes from "the batch" comes from all of them, so that the
result does not depend on their number.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fct_tf.training import losses, margins


def match_dims(embedding: tf.Tensor, dim: int) -> tf.Tensor:
    """The first `dim` coordinates of embeddings, or with zeros after them where there are fewer.

    Args:
      embedding: float [batch, d].
      dim: d_old.

    Returns:
      float [batch, dim].
    """
    missing = dim - embedding.shape[1]
    if missing > 0:
        return tf.pad(embedding, [[0, 0], [0, missing]])
    return embedding[:, :dim]


def bct(
    embedding: tf.Tensor,
    old_labels: tf.Tensor,
    classifier: tf.Tensor,
    old_embedding: tf.Tensor | None = None,
    *,
    smoothing: float = 0.0,
    scale: float | None = None,
    temperature: float = 2.0,
) -> tf.Tensor:
    """Influence loss: the new embedding under the frozen old classifier (BCT, arXiv 2003.11942).

    Cross-entropy where the old classifier knows the example's class. Where it does not:
    - with `old_embedding`, `distillation`;
    - without it the example is left out: its value is 0, and the others are scaled so that the
      sum over the global batch, divided by its size, is the mean over those that are in.

    `synthesize` extends a classifier by the classes that it lacks; then none is left out.

    Args:
      embedding: float [batch, d_old] of the new model.
      old_labels: int [batch], the class's column in `classifier`; -1: it has none.
      classifier: float [d_old, old classes].
      old_embedding: float [batch, d_old] of the same images, or None.
      smoothing: of the labels, as in the classification loss.
      scale: of cosine logits, for a classifier over angles (`margins.normface`; no margin);
        None: linear logits.
      temperature: of the distillation.

    Returns:
      float32 [batch].
    """
    logits = margins.frozen_logits(embedding, classifier, scale)
    has_class = old_labels >= 0
    loss = losses.cross_entropy(logits, tf.maximum(old_labels, 0), smoothing)
    if old_embedding is not None:
        soft = distillation(embedding, old_embedding, classifier, scale, temperature)
        return tf.where(has_class, loss, soft)
    has_class = tf.cast(has_class, loss.dtype)
    counts = tf.stack([tf.size(loss, loss.dtype), tf.reduce_sum(has_class)])
    examples, count = tf.unstack(_sum_over_replicas(counts))
    return loss * has_class * tf.math.divide_no_nan(examples, count)


def distillation(
    embedding: tf.Tensor,
    old_embedding: tf.Tensor,
    classifier: tf.Tensor,
    scale: float | None = None,
    temperature: float = 2.0,
) -> tf.Tensor:
    """Cross-entropy between what the old classifier makes of the old and the new embedding.

    -sum_c p_c log q_c, p = softmax(old logits / T), q = softmax(new logits / T) (learning without
    forgetting, arXiv 1606.09282, equation 2, with the head frozen). Both sides have the
    temperature: the loss is then least where the logits agree. It is not multiplied by T^2.

    Args:
      embedding, old_embedding: float [batch, d_old] of the same images.
      classifier: float [d_old, old classes].
      scale: as in `bct`.
      temperature: T > 0.

    Returns:
      float32 [batch].
    """
    embedding = losses.as_float(embedding)
    old_embedding = tf.stop_gradient(tf.cast(old_embedding, embedding.dtype))
    teacher = tf.nn.softmax(margins.frozen_logits(old_embedding, classifier, scale) / temperature)
    student = tf.nn.log_softmax(margins.frozen_logits(embedding, classifier, scale) / temperature)
    return -tf.reduce_sum(teacher * student, axis=1)


def triplet(
    embedding: tf.Tensor, old_embedding: tf.Tensor, labels: tf.Tensor, margin: float = 1.0
) -> tf.Tensor:
    """max(0, |new - old| - |new - other| + margin), Euclidean.

    The positive is the old embedding of the same image, the negative (`other`) the nearest old
    embedding of another class in the batch. Without one the value is 0.

    Args:
      embedding, old_embedding: float [batch, d_old] of the same images.
      labels: int [batch].
      margin: how much nearer the positive has to be.

    Returns:
      float32 [batch].
    """
    embedding = losses.as_float(embedding)
    old_embedding = tf.stop_gradient(tf.cast(old_embedding, embedding.dtype))
    all_old, all_labels = _of_all_replicas(old_embedding), _of_all_replicas(labels)
    # Squared, up to |new|^2, which is the same for all candidates of an anchor.
    nearness = tf.reduce_sum(tf.square(all_old), axis=1) - 2.0 * tf.matmul(
        embedding, all_old, transpose_b=True
    )
    is_other = labels[:, None] != all_labels[None, :]
    hardest = tf.argmin(tf.where(is_other, nearness, nearness.dtype.max), axis=1)
    # Its distance anew, without the cancellation of the expanded square.
    difference = _distance(embedding, old_embedding) - _distance(
        embedding, tf.gather(all_old, hardest)
    )
    has_other = tf.reduce_any(is_other, axis=1)
    return tf.where(has_other, tf.nn.relu(difference + margin), tf.zeros_like(difference))


def contrastive(
    embedding: tf.Tensor, old_embedding: tf.Tensor, labels: tf.Tensor, temperature: float = 0.05
) -> tf.Tensor:
    """Supervised contrastive loss with the old embeddings as keys (arXiv 2004.11362, eq. 2).

    Mean over the keys p of the example's class, its own among them, of
    -log(exp(cos(new, p) / T) / sum_k exp(cos(new, k) / T)), k over all keys of the batch.
    (openBCT leaves the other positives out of the sum.)

    Args:
      embedding, old_embedding: float [batch, d_old] of the same images; normalised here.
      labels: int [batch].
      temperature: T > 0.

    Returns:
      float32 [batch].
    """
    embedding = losses.as_float(embedding)
    old_embedding = tf.stop_gradient(tf.cast(old_embedding, embedding.dtype))
    keys = _of_all_replicas(tf.nn.l2_normalize(old_embedding, axis=1))
    anchors = tf.nn.l2_normalize(embedding, axis=1)
    log_p = tf.nn.log_softmax(tf.matmul(anchors, keys, transpose_b=True) / temperature)
    positive = tf.cast(labels[:, None] == _of_all_replicas(labels)[None, :], log_p.dtype)
    return -tf.reduce_sum(positive * log_p, axis=1) / tf.reduce_sum(positive, axis=1)


def match_classes(classes: Sequence[str], old_classes: Sequence[str]) -> np.ndarray:
    """Where each class stands among the old ones, matched by name: int64 [classes], -1: not."""
    position = {name: number for number, name in enumerate(old_classes)}
    return np.array([position.get(name, -1) for name in classes], np.int64)


def synthesize(
    classifier: np.ndarray,
    old_labels: np.ndarray,
    embeddings: np.ndarray,
    labels: np.ndarray,
    centred: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Extends the old classifier by the classes that it lacks (BCT, section 3.4).

    A new class's weights are the mean old embedding of its images, brought to the mean length
    of the old classes' weights.

    Embeddings may have a large mean in common, to which learnt weights are orthogonal and such
    weights are not: then every image, of the old classes too, looks like the new ones, the old
    embeddings themselves are classified wrongly, and the loss drives the new ones away from them.
    `centred` leaves that mean out of the weights.

    Args:
      classifier: float32 [d_old, old classes].
      old_labels: int64 [classes], as `match_classes` gives.
      embeddings: float32 [images, d_old], old embeddings of the training images.
      labels: int [images], in 0..classes-1.
      centred: without the mean of all `embeddings`.

    Returns:
      The classifier, float32 [d_old, old classes + new classes], and its `old_labels`, none -1.
    """
    length = np.linalg.norm(classifier.astype(np.float64), axis=0).mean()
    columns = [classifier]
    common = embeddings.mean(axis=0, dtype=np.float64) if centred else 0.0
    extended_labels = old_labels.copy()
    for number, label in enumerate(np.flatnonzero(old_labels < 0)):
        # A sum will do, its length is set below; a class whose images were skipped has none.
        own = embeddings[labels == label]
        mean = own.sum(axis=0, dtype=np.float64) - len(own) * common
        columns.append((mean * length / max(np.linalg.norm(mean), 1e-12))[:, None])
        extended_labels[label] = classifier.shape[1] + number
    return np.concatenate(columns, axis=1).astype(np.float32), extended_labels


def _distance(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Euclidean, [batch]. The floor keeps the gradient finite where two vectors are equal."""
    return tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(a - b), axis=1), 1e-12))


def _of_all_replicas(values: tf.Tensor) -> tf.Tensor:
    """[batch, ..] of this replica -> [global batch, ..]."""
    context = _context()
    return values if context is None else context.all_gather(values, axis=0)


def _sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    context = _context()
    return values if context is None else context.all_reduce("sum", values)


def _context() -> tf.distribute.ReplicaContext | None:
    """The replica's context where there are several, else None."""
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None
