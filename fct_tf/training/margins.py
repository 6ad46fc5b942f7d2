"""Classifiers over angles: logits from embeddings and class weights, both of length one.

t is the angle between an embedding and a class's weights, s the scale and m the margin, which
only the logit of an example's own class gets. Being angles, embeddings trained so are compared
by cosine.
"""

from typing import Any

import tensorflow as tf

from fct_tf.config import HEADS
from fct_tf.training.losses import as_float


def logits(head: Any, embedding: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Logits of a head that the section `head` of a model describes.

    Args:
      head: attributes `name` (`linear`, `normface`, `cosface` or `arcface`), `scale`, `margin`.
      embedding: float [batch, d].
      weights: float [d, classes].
      labels: int [batch], in 0..classes-1.

    Returns:
      float32 [batch, classes].
    """
    given = settings(head)
    if head.name == "normface":
        return normface(embedding, weights, given["scale"])
    if head.name == "cosface":
        return cosface(embedding, weights, labels, given["scale"], given["margin"])
    if head.name == "arcface":
        return arcface(embedding, weights, labels, given["scale"], given["margin"])
    embedding = as_float(embedding)
    return tf.matmul(embedding, tf.cast(weights, embedding.dtype))


def frozen_logits(
    embedding: tf.Tensor, classifier: tf.Tensor, scale: float | None = None
) -> tf.Tensor:
    """Logits under the classifier of a model that is not trained: no gradient flows into it.

    Args:
      embedding: float [batch, d].
      classifier: float [d, classes].
      scale: of a classifier over angles (`normface`; no margin); None: linear logits.

    Returns:
      float32 [batch, classes].
    """
    embedding = as_float(embedding)
    classifier = tf.stop_gradient(tf.cast(classifier, embedding.dtype))
    if scale is not None:
        return normface(embedding, classifier, scale)
    return tf.matmul(embedding, classifier)


def settings(head: Any) -> dict[str, float]:
    """The `scale` and `margin` of a head, the paper's where they are not given; linear: none."""
    given = {"scale": head.scale, "margin": head.margin}
    return {
        name: default if given[name] is None else given[name]
        for name, default in HEADS[head.name].items()
    }


def normface(embedding: tf.Tensor, weights: tf.Tensor, scale: float) -> tf.Tensor:
    """s cos t (NormFace, arXiv 1704.06369, with the scale fixed).

    Args:
      embedding: float [batch, d], normalised here.
      weights: float [d, classes], normalised here.
      scale: s > 0.

    Returns:
      float32 [batch, classes].
    """
    return scale * _cosines(embedding, weights)


def cosface(
    embedding: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor, scale: float, margin: float
) -> tf.Tensor:
    """s (cos t - m) of the own class, s cos t of the others (CosFace, arXiv 1801.09414, eq. 4).

    Args and result as `arcface`; the margin is a cosine.
    """
    cosines = _cosines(embedding, weights)
    return scale * (cosines - margin * tf.one_hot(labels, cosines.shape[1], dtype=cosines.dtype))


def arcface(
    embedding: tf.Tensor, weights: tf.Tensor, labels: tf.Tensor, scale: float, margin: float
) -> tf.Tensor:
    """s cos(t + m) of the own class, s cos t of the others (ArcFace, arXiv 1801.07698, eq. 3).

    Beyond t = pi - m the cosine of t + m would rise again and reward a larger angle. From there
    on the own logit is s (cos t - m sin m), as in the authors' code: it falls over all of
    0..pi, with a step down at pi - m.

    Args:
      embedding: float [batch, d], normalised here.
      weights: float [d, classes], normalised here.
      labels: int [batch], in 0..classes-1.
      scale: s > 0.
      margin: m in radians, 0 <= m < pi/2.

    Returns:
      float32 [batch, classes].
    """
    cosines = _cosines(embedding, weights)
    own = tf.gather(cosines, labels, axis=1, batch_dims=1)
    # The root's slope is infinite where |cos t| = 1 (or rounds to more); the floor's is zero.
    sine = tf.sqrt(tf.maximum((1.0 - own) * (1.0 + own), 1e-12))
    m = tf.constant(margin, own.dtype)
    shifted = tf.where(own > -tf.cos(m), own * tf.cos(m) - sine * tf.sin(m), own - m * tf.sin(m))
    mark = tf.one_hot(labels, cosines.shape[1], dtype=cosines.dtype)
    return scale * (cosines + mark * (shifted - own)[:, None])


def _cosines(embedding: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    embedding = tf.nn.l2_normalize(as_float(embedding), axis=1)
    return tf.matmul(embedding, tf.nn.l2_normalize(tf.cast(weights, embedding.dtype), axis=0))
