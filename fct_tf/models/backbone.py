"""Embedding networks: the papers' ResNets with the embedding inside the last block.

The residual networks of FCT (arXiv 2112.02805, section 5) have no dense layer between features
and embedding: the last block itself is `embedding_dim` channels wide, and its average over the
image is the embedding. The classifier on top has no bias. Other architectures come from
keras-cv, pooled and followed by one dense layer (see `fct_tf.models.keras_cv_backbones`).
"""

from typing import Any

import keras

from fct_tf.common.errors import InputError
from fct_tf.models.layers import Settings, SmallImageConv2D, check_choice

# Blocks in each of the four stages, and whether they are bottlenecks (1x1, 3x3, 1x1).
RESNETS = {
    "resnet10": ((1, 1, 1, 1), False),  # For small images and quick tries: half the layers.
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
STAGE_WIDTHS = (64, 128, 256, 512)
BOTTLENECK_EXPANSION = 4
STEMS = ("7x7", "3x3")


def build(config: Any, image_size: int, seed: int = 0) -> keras.Model:
    """An embedding network with fresh weights.

    Args:
      config: attributes `name` (`resnet10`, `resnet18`, `resnet34`, `resnet50`, `resnet101` or
        `keras_cv:NAME`), `embedding_dim`, and optionally `width` (factor on all stage widths),
        `stem` (`7x7`: stride 2 and max-pooling, the papers' choice at every image size; `3x3`:
        stride 1, no pooling), `normalize` (L2-normalise embeddings), `bn_momentum`,
        `bn_epsilon`, `dtype` (`float32`, `bfloat16`), `sync_batch_norm` (statistics over all
        replicas).
      image_size: height and width of the images, in pixels.
      seed: of the initial weights.

    Returns:
      A model from preprocessed images, float32 [batch, image_size, image_size, 3], to
      embeddings, float32 [batch, embedding_dim].

    Raises:
      InputError: an unknown name or setting.
    """
    settings = Settings.of(config, seed)
    images = keras.Input((image_size, image_size, 3), name="image")
    if config.name.startswith("keras_cv:"):
        import fct_tf.models.keras_cv_backbones as keras_cv_backbones

        features = keras_cv_backbones.features(images, config, settings)
    elif config.name in RESNETS:
        features = _resnet(images, config, settings)
    else:
        raise InputError(
            f"backbone.name: unknown network {config.name!r}; choose one of "
            f"{', '.join(RESNETS)} or keras_cv:NAME"
        )
    if getattr(config, "normalize", False):
        features = keras.layers.UnitNormalization(dtype=settings.output, name="embedding")(features)
    name = config.name.replace(":", "_")
    return keras.Model(images, features, name=name)


def classifier(
    num_classes: int,
    embedding_dim: int,
    seed: int = 0,
    dtype: str = "float32",
) -> keras.layers.Dense:
    """A built linear classifier without bias: float32 [batch, d] -> logits [batch, classes].

    Its kernel is float32 [embedding_dim, num_classes], float64 where `dtype` is.
    """
    settings = Settings(seed, dtype=dtype)
    layer = keras.layers.Dense(
        num_classes,
        use_bias=False,
        kernel_initializer=settings.kernel(),
        dtype=settings.output,
        name="classifier",
    )
    layer.build((None, embedding_dim))
    return layer


def _resnet(images: keras.KerasTensor, config: Any, settings: Settings) -> keras.KerasTensor:
    blocks, bottleneck = RESNETS[config.name]
    factor = getattr(config, "width", 1.0)
    widths = [max(1, round(factor * width)) for width in STAGE_WIDTHS]
    x = _stem(images, widths[0], getattr(config, "stem", "7x7"), settings)
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        for block in range(1, count + 1):
            last = stage == len(widths) and block == count
            out = width * BOTTLENECK_EXPANSION if bottleneck else width
            x = (_bottleneck if bottleneck else _basic)(
                x,
                width=config.embedding_dim if last and not bottleneck else width,
                out=config.embedding_dim if last else out,
                stride=2 if stage > 1 and block == 1 else 1,
                settings=settings,
                name=f"stage{stage}_block{block}",
            )
    # In float32 also under bfloat16: this mean is the embedding.
    return keras.layers.GlobalAveragePooling2D(dtype=settings.output, name="pool")(x)


def _stem(x: keras.KerasTensor, width: int, stem: str, settings: Settings) -> keras.KerasTensor:
    check_choice(stem, STEMS, "backbone.stem")
    if stem == "3x3":
        return _conv_bn(x, width, 3, 1, settings, "stem", relu=True)
    x = _conv_bn(x, width, 7, 2, settings, "stem", relu=True)
    # Zeros are as good as minus infinity here: nothing is below zero after the ReLU.
    x = _pad(x, 3, settings, "stem_pool_pad")
    return keras.layers.MaxPooling2D(3, 2, dtype=settings.policy, name="stem_pool")(x)


def _basic(x, *, width, out, stride, settings, name):
    y = _conv_bn(x, width, 3, stride, settings, f"{name}_conv1", relu=True)
    y = _conv_bn(y, out, 3, 1, settings, f"{name}_conv2")
    return _add(x, y, stride, settings, name)


def _bottleneck(x, *, width, out, stride, settings, name):
    y = _conv_bn(x, width, 1, 1, settings, f"{name}_conv1", relu=True)
    y = _conv_bn(y, width, 3, stride, settings, f"{name}_conv2", relu=True)
    y = _conv_bn(y, out, 1, 1, settings, f"{name}_conv3")
    return _add(x, y, stride, settings, name)


def _add(x, y, stride, settings, name):
    """Adds the shortcut, projected where its shape differs."""
    if stride != 1 or x.shape[-1] != y.shape[-1]:
        x = _conv_bn(x, y.shape[-1], 1, stride, settings, f"{name}_shortcut")
    x = keras.layers.Add(dtype=settings.policy, name=f"{name}_add")([x, y])
    return keras.layers.ReLU(dtype=settings.policy, name=f"{name}_relu")(x)


def _conv_bn(x, filters, kernel, stride, settings, name, relu=False):
    if kernel > 1 and stride > 1:
        x = _pad(x, kernel, settings, f"{name}_pad")
    x = SmallImageConv2D(
        filters,
        kernel,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=settings.kernel(),
        dtype=settings.policy,
        name=name,
    )(x)
    x = settings.batch_norm(f"{name}_bn")(x)
    return keras.layers.ReLU(dtype=settings.policy, name=f"{name}_relu")(x) if relu else x


def _pad(x, kernel, settings, name):
    """The padding of PyTorch, kernel // 2 on each side, before a window of stride 2.

    "same" would put the windows elsewhere: TensorFlow gives the odd row of an even size to the
    bottom. PyTorch's last row and column are then read by no window, so they are left out.
    """
    before = kernel // 2
    pads = tuple((before, before - (size % 2 == 0)) for size in x.shape[1:3])
    return keras.layers.ZeroPadding2D(pads, dtype=settings.policy, name=name)(x)
