"""The map from one embedding space to another, run once per stored row (FCT).

Two branches, one for the old embedding and one for the side-information, and a mixer; the network
of arXiv 2112.02805, section 4.2. It is a few matrix products: an upgrade reads no image.
"""

import keras
import numpy as np

from fct_tf.models import fold
from fct_tf.models.kernel import Correction
from fct_tf.models.layers import Settings
from fct_tf.models.linear import Affine

LOG_VARIANCE = "log_variance"  # name of an output and of the layer that makes it


def build(
    d_source: int,
    d_target: int,
    d_side: int | None = None,
    *,
    hidden: int = 2048,
    affine: Affine | None = None,
    log_variance: bool = False,
    bn_momentum: float = 0.9,
    bn_epsilon: float = 1e-5,
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
      affine: start from this map of the inputs, source embedding and side-information side by
        side: it is added to the network's output, which starts at zero, and is trained too.
      log_variance: also return one for each row, by FastFill's head, the layer `LOG_VARIANCE`: a
        dense layer on the transformed embedding, in float32 (arXiv 2303.04766).
      bn_momentum, bn_epsilon, dtype, sync_batch_norm: as `backbone.build`. With
        bfloat16 the last layer stays float32.
      normalize: L2-normalise the output, for a target space that is.
      seed: of the initial weights.

    Returns:
      A model from {"source_embedding": float32 [batch, d_source], "side_info": float32
      [batch, d_side]} (the latter only with side-information) to {"embedding": float32
      [batch, d_target]} and perhaps {"log_variance": float32 [batch]}. 5,712,000 trainable
      parameters at 128/128/128, and 129 of the head.

    Raises:
      InputError: unknown dtype.
    """
    settings = Settings(
        seed=seed,
        bn_momentum=bn_momentum,
        bn_epsilon=bn_epsilon,
        dtype=dtype,
        sync_batch_norm=sync_batch_norm,
    )
    inputs = _inputs(d_source, d_side)
    second = inputs.get("side_info", inputs["source_embedding"])
    branches = [
        _branch(inputs["source_embedding"], d_target, settings, "source"),
        _branch(second, d_target, settings, "side"),
    ]
    x = keras.layers.Concatenate(dtype=settings.policy, name="concatenate")(branches)
    for name in ("mixer1", "mixer2"):
        x = _dense_bn(x, hidden, settings, name)
    x = keras.layers.Dense(
        d_target,
        kernel_initializer=settings.kernel() if affine is None else "zeros",
        bias_initializer=settings.bias(fan_in=hidden) if affine is None else "zeros",
        dtype=settings.output,
        name="mixer3",
    )(x)
    if affine is not None:
        start = _affine(inputs, affine, settings.output)
        x = keras.layers.Add(dtype=settings.output, name="residual")([start, x])
    outputs = {"embedding": _output(x, normalize, settings.output)}
    if log_variance:
        outputs["log_variance"] = _log_variance(outputs["embedding"], settings)
    return keras.Model(inputs, outputs, name="transformation")


def build_affine(
    d_source: int, d_side: int | None, affine: Affine, *, normalize: bool = False
) -> keras.Model:
    """A fitted affine map as a transformation: one dense layer; inputs and outputs as `build`."""
    inputs = _inputs(d_source, d_side)
    x = _output(_affine(inputs, affine, "float32"), normalize, "float32")
    return keras.Model(inputs, {"embedding": x}, name="transformation")


def corrected(
    model: keras.Model, correction: Correction, *, normalize: bool = False
) -> keras.Model:
    """`model` with a kernel correction added to its embedding; inputs and outputs as `build`.

    Args:
      model: a transformation.
      correction: fitted to the blocks `source_embedding`, `side_info` (where the model reads
        it) and `embedding`, the model's output.
      normalize: L2-normalise the sum.

    Further outputs, such as `log_variance`, stay what they are: of the model before correction.
    """
    # On the model's own tensors: as one graph, its layers can be folded and made plain.
    inputs, outputs = model.input, model.output
    blocks = {**inputs, "embedding": outputs["embedding"]}
    width = correction.width

    def named(name: str) -> dict[str, str]:
        return {"name": f"{fold.EXACT}{name}", "dtype": "float32"}

    scaled = [
        keras.layers.Rescaling(1 / scale, (-correction.means[role] / scale).tolist(), **named(role))
        for role, scale in correction.scales.items()
    ]
    f = [layer(blocks[role]) for layer, role in zip(scaled, correction.scales, strict=True)]
    f = keras.layers.Concatenate(**named("features"))(f)
    # -|f - c|^2 / w = (2 f'c - |c|^2) / w - |f|^2 / w, in layers that Keras itself has.
    near = keras.layers.Dense(len(correction.centres), **named("centres"))
    squared = keras.layers.Dot(axes=1, **named("squared"))([f, f])
    length = keras.layers.Rescaling(1.0 / width, **named("length"))(squared)
    exponent = keras.layers.Subtract(**named("exponent"))([near(f), length])
    kernel = keras.layers.Activation("exponential", **named("kernel"))(exponent)
    mend = keras.layers.Dense(
        correction.coefficients.shape[1], use_bias=False, **named("coefficients")
    )
    x = keras.layers.Add(**named("sum"))([outputs["embedding"], mend(kernel)])
    near.set_weights(
        [
            (2.0 * correction.centres.T / width).astype(np.float32),
            (-(correction.centres**2).sum(1) / width).astype(np.float32),
        ]
    )
    mend.set_weights([correction.coefficients.astype(np.float32)])
    x = _output(x, normalize, "float32", f"{fold.EXACT}unit_length")
    return keras.Model(inputs, {**outputs, "embedding": x}, name="corrected_transformation")


def _inputs(d_source: int, d_side: int | None) -> dict[str, keras.KerasTensor]:
    inputs = {"source_embedding": keras.Input((d_source,), name="source_embedding")}
    if d_side is not None:
        inputs["side_info"] = keras.Input((d_side,), name="side_info")
    return inputs


def _affine(inputs: dict[str, keras.KerasTensor], affine: Affine, dtype: str):
    tensors = list(inputs.values())
    if len(tensors) > 1:
        tensors = [keras.layers.Concatenate(dtype=dtype, name="inputs")(tensors)]
    layer = keras.layers.Dense(affine[0].shape[1], dtype=dtype, name="affine")
    x = layer(tensors[0])
    layer.set_weights([values.astype(np.float32) for values in affine])
    return x


def _output(x: keras.KerasTensor, normalize: bool, dtype: str, name: str = "embedding"):
    return keras.layers.UnitNormalization(dtype=dtype, name=name)(x) if normalize else x


def _log_variance(x: keras.KerasTensor, settings: Settings) -> keras.KerasTensor:
    # The last layer to be made: without it the others start from the same weights.
    head = keras.layers.Dense(
        1,
        kernel_initializer=settings.kernel(),
        bias_initializer=settings.bias(fan_in=x.shape[-1]),
        dtype=settings.output,
        name=LOG_VARIANCE,
    )
    return keras.layers.Reshape((), dtype=settings.output, name=f"{LOG_VARIANCE}_row")(head(x))


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
