"""The map from one embedding space to another, run once per stored row (FCT).

Two branches, one for the old embedding and one for the side-information, and a mixer; the network
of arXiv 2112.02805, section 4.2. It is a few matrix products: an upgrade reads no image.
"""

import keras

from fct_tf.models.layers import Settings


def build(
    d_source: int,
    d_target: int,
    d_side: int | None = None,
    *,
    hidden: int = 2048,
    bn_momentum: float = 0.9,
    bn_epsilon: float = 1e-5,
    initializer: str = "pytorch",
    dtype: str = "float32",
    sync_batch_norm: bool = False,
    normalize: bool = False,
    seed: int = 0,
) -> keras.Model:
    """A transformation with fresh weights.

    Each branch is Dense(2 d_in) BN ReLU Dense(2 d_target) BN ReLU, their concatenation goes
    through Dense(hidden) BN ReLU twice and Dense(d_target) with a bias. Without
    side-information both branches read the source embedding. Calling the model with
    `training=False` runs BatchNorm on its running statistics and leaves those alone; its scale
    and offset still receive gradients.

    Args:
      d_source, d_target, d_side: embedding sizes; `d_side` None is "no side-information".
      hidden: width of the mixer.
      bn_momentum, bn_epsilon, initializer, dtype, sync_batch_norm: as `backbone.build`. With
        bfloat16 the last layer stays float32.
      normalize: L2-normalise the output, for a target space that is.
      seed: of the initial weights.

    Returns:
      A model from {"source_embedding": float32 [batch, d_source], "side_info": float32
      [batch, d_side]} (the latter only with side-information) to {"embedding": float32
      [batch, d_target]}. 5,712,000 trainable parameters at 128/128/128.

    Raises:
      InputError: unknown initializer or dtype.
    """
    settings = Settings(
        seed=seed,
        initializer=initializer,
        bn_momentum=bn_momentum,
        bn_epsilon=bn_epsilon,
        dtype=dtype,
        sync_batch_norm=sync_batch_norm,
    )
    inputs = {"source_embedding": keras.Input((d_source,), name="source_embedding")}
    if d_side is not None:
        inputs["side_info"] = keras.Input((d_side,), name="side_info")
    second = inputs.get("side_info", inputs["source_embedding"])
    branches = [
        _branch(inputs["source_embedding"], d_target, settings, "source"),
        _branch(second, d_target, settings, "side"),
    ]
    x = keras.layers.Concatenate(dtype=settings.policy, name="concatenate")(branches)
    x = _dense_bn(x, hidden, settings, "mixer1")
    x = _dense_bn(x, hidden, settings, "mixer2")
    x = keras.layers.Dense(
        d_target,
        kernel_initializer=settings.kernel(),
        bias_initializer=settings.bias(fan_in=hidden),
        dtype=settings.output,
        name="mixer3",
    )(x)
    if normalize:
        x = keras.layers.UnitNormalization(dtype=settings.output, name="embedding")(x)
    return keras.Model(inputs, {"embedding": x}, name="transformation")


def _branch(x: keras.KerasTensor, d_target: int, settings: Settings, name: str):
    x = _dense_bn(x, 2 * x.shape[-1], settings, f"{name}1")
    return _dense_bn(x, 2 * d_target, settings, f"{name}2")


def _dense_bn(x: keras.KerasTensor, units: int, settings: Settings, name: str):
    x = keras.layers.Dense(
        units,
        use_bias=False,  # BatchNorm's offset is one
        kernel_initializer=settings.kernel(),
        dtype=settings.policy,
        name=name,
    )(x)
    x = settings.batch_norm(f"{name}_bn")(x)
    return keras.layers.ReLU(dtype=settings.policy, name=f"{name}_relu")(x)
