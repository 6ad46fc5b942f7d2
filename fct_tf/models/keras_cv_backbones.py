"""Networks of keras-cv under an average pool and one dense layer.

The preset classes of keras-cv download their configuration, so the architectures are written
down here, with random weights. `backbone.stem` and `backbone.width` do not apply to them.
"""

from typing import Any

import keras
import numpy as np

from fct_tf.common.errors import InputError
from fct_tf.models.layers import FusedBatchNormalization, Settings

# Blocks per stage, and keras-cv's name of the block.
_RESNETS = {
    "resnet18": ([2, 2, 2, 2], "basic_block"),
    "resnet34": ([3, 4, 6, 3], "basic_block"),
    "resnet50": ([3, 4, 6, 3], "block"),
    "resnet101": ([3, 4, 23, 3], "block"),
    "resnet152": ([3, 8, 36, 3], "block"),
}
# Factors of width and depth.
_EFFICIENTNETS_V2 = {
    "efficientnetv2_b0": (1.0, 1.0),
    "efficientnetv2_b1": (1.0, 1.1),
    "efficientnetv2_b2": (1.1, 1.2),
    "efficientnetv2_b3": (1.2, 1.4),
}
_DENSENETS = {
    "densenet121": [6, 12, 24, 16],
    "densenet169": [6, 12, 32, 32],
    "densenet201": [6, 12, 48, 32],
}
# One block a row: expansion, filters, kernel, stride, squeeze-and-excite, activation
# (arXiv 1905.02244, tables 1 and 2).
_MOBILENETS_V3 = {
    "mobilenet_v3_small": [
        (1, 16, 3, 2, 0.25, "relu"),
        (72 / 16, 24, 3, 2, None, "relu"),
        (88 / 24, 24, 3, 1, None, "relu"),
        (4, 40, 5, 2, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 2, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
    ],
    "mobilenet_v3_large": [
        (1, 16, 3, 1, None, "relu"),
        (4, 24, 3, 2, None, "relu"),
        (3, 24, 3, 1, None, "relu"),
        (3, 40, 5, 2, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (6, 80, 3, 2, None, "hard_swish"),
        (2.5, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 160, 5, 2, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
    ],
}
NAMES = (
    *_RESNETS,
    *(f"{name}_v2" for name in _RESNETS),
    *_EFFICIENTNETS_V2,
    *_DENSENETS,
    *_MOBILENETS_V3,
)


def features(images: keras.KerasTensor, config: Any, settings: Settings) -> keras.KerasTensor:
    """Embeddings, float32 [batch, embedding_dim], of `images` by the network `config.name`.

    The initialiser applies to all kernels, the BatchNorm settings to all such layers, but for the
    epsilon of those that keras-cv hides inside blocks of its own (it does so in EfficientNets).

    Raises:
      InputError: an unknown name after `keras_cv:`.
    """
    name = config.name.removeprefix("keras_cv:")
    if name not in NAMES:
        raise InputError(
            f"backbone.name: unknown network {config.name!r}; choose keras_cv: and one of "
            f"{', '.join(NAMES)}"
        )
    if getattr(config, "width", 1.0) != 1.0 or getattr(config, "stem", "7x7") != "7x7":
        raise InputError(f"backbone.width and stem: {config.name} has only its own")
    network = _construct(name, images.shape[1], settings.policy)
    network = _on_images(name, network, images, settings)
    _initialize(network, settings)
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(network.outputs[0])
    return keras.layers.Dense(
        config.embedding_dim,
        kernel_initializer=settings.kernel(),
        bias_initializer=settings.bias(fan_in=x.shape[-1]),
        dtype="float32",
        name="dense",
    )(x)


def _construct(name: str, size: int, policy: str) -> keras.Model:
    import keras_cv  # Slow to import, and most experiments do without.

    common = {"include_rescaling": False, "input_shape": (size, size, 3)}
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)  # keras-cv passes no dtype on to its layers
    try:
        if name.startswith("resnet"):
            second = name.endswith("_v2")
            blocks, block_type = _RESNETS[name.removesuffix("_v2")]
            models = keras_cv.models
            return (models.ResNetV2Backbone if second else models.ResNetBackbone)(
                stackwise_filters=[64, 128, 256, 512],
                stackwise_blocks=blocks,
                stackwise_strides=[1, 2, 2, 2],
                block_type=block_type,
                **common,
            )
        if name in _EFFICIENTNETS_V2:
            width, depth = _EFFICIENTNETS_V2[name]
            return keras_cv.models.EfficientNetV2Backbone(
                stackwise_kernel_sizes=[3, 3, 3, 3, 3, 3],
                stackwise_num_repeats=[1, 2, 2, 3, 5, 8],
                stackwise_input_filters=[32, 16, 32, 48, 96, 112],
                stackwise_output_filters=[16, 32, 48, 96, 112, 192],
                stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
                stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25, 0.25, 0.25],
                stackwise_strides=[1, 2, 2, 2, 1, 2],
                stackwise_conv_types=3 * ["fused"] + 3 * ["unfused"],
                width_coefficient=width,
                depth_coefficient=depth,
                **common,
            )
        if name in _DENSENETS:
            return keras_cv.models.DenseNetBackbone(
                stackwise_num_repeats=_DENSENETS[name], **common
            )
        columns = [list(column) for column in zip(*_MOBILENETS_V3[name], strict=True)]
        keys = ("expansion", "filters", "kernel_size", "stride", "se_ratio", "activation")
        table = {f"stackwise_{key}": column for key, column in zip(keys, columns, strict=True)}
        return keras_cv.models.MobileNetV3Backbone(**table, **common)
    finally:
        keras.config.set_dtype_policy(before)


def _on_images(
    name: str, network: keras.Model, images: keras.KerasTensor, settings: Settings
) -> keras.Model:
    """A copy on `images`, with this package's BatchNorm in the place of Keras'."""

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        configured = layer.get_config()
        if name.startswith("mobilenet") and "excite_activation" in configured:
            # keras-cv saves its own copy of this function in a form that it cannot read.
            configured["excite_activation"] = "hard_sigmoid"
        if type(layer) is not keras.layers.BatchNormalization:
            return type(layer).from_config(configured)
        configured |= {"momentum": settings.momentum, "epsilon": settings.epsilon}
        configured["synchronized"] = settings.synchronized
        kind = keras.layers.BatchNormalization if settings.synchronized else FusedBatchNormalization
        return kind.from_config(configured)

    functional = keras.Model(network.inputs, network.outputs)
    cloned = keras.models.clone_model(functional, input_tensors=[images], clone_function=copy)
    for layer in cloned._flatten_layers():  # Those inside keras-cv's own blocks too.
        if isinstance(layer, keras.layers.BatchNormalization):
            # Not epsilon: the blocks do not save it, so a reloaded model would have their own.
            layer.momentum, layer.synchronized = settings.momentum, settings.synchronized
    return cloned


def _initialize(network: keras.Model, settings: Settings) -> None:
    """Draws every kernel anew: keras-cv takes no initialiser and no seed for most of them."""
    for variable in network.trainable_variables:
        if variable.path.endswith("kernel"):
            shape = tuple(variable.shape)
            # A depthwise kernel [h, w, channels, 1] reads one channel for each output.
            depthwise = len(shape) == 4 and shape[3] == 1
            fans = (shape[0], shape[1], 1, shape[2]) if depthwise else shape
            values = np.asarray(settings.kernel()(fans, dtype="float32"))
            variable.assign(values.reshape(shape))
