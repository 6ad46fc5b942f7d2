"""ScaNN itself: its import, its configuration as text, and its files without its wrapper.

ScaNN's wrapper keeps ids as a pickle beside the index and unpickles what lies there. So the index
is made, saved and loaded through the class below the wrapper, which knows rows by number only.
"""

import functools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from absl import logging

from fct_tf.ann.settings import Settings
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line

_ASSETS = "scann_assets.pbtxt"
_ASSET = re.compile(r'asset_type:\s*([A-Z0-9_]+)\s+asset_path:\s*"([^"]*)"')
_NAME = re.compile(r"[a-z0-9_]+\.(npy|pb)")


@functools.cache
def available() -> bool:
    """Whether ScaNN can be imported; says why not, once. Imports TensorFlow."""
    try:
        import scann  # noqa: F401
    except Exception as error:  # Beside another TensorFlow it fails with that one's own errors.
        logging.warning("ScaNN cannot be imported (%s); searching exactly", one_line(error))
        return False
    return True


def build(rows: np.ndarray, settings: Settings, threads: int):
    """A `ScannNumpy` of float32 [n, d], which it copies."""
    import scann_pybind

    try:
        return scann_pybind.ScannNumpy(rows, config(rows.shape, settings), threads)
    except RuntimeError as error:
        raise InputError(f"ScaNN cannot index {len(rows)} rows: {one_line(error)}") from None


def config(shape: tuple[int, int], settings: Settings) -> str:
    """ScaNN's configuration, as its own builder writes it."""
    from scann.scann_ops.py.scann_builder import ReorderType, ScannBuilder

    data = {name.lower(): kind for name, kind in ReorderType.__members__.items()}
    measure = "dot_product" if settings.wants_inner_product else "squared_l2"
    # Of the rows the builder looks at the shape alone.
    builder = ScannBuilder(SimpleNamespace(shape=shape), 10, measure)

    def given(**values):
        return {name: value for name, value in values.items() if value is not None}

    s = settings
    if s.pca_reduction_dim is not None:
        builder.pca(reduction_dim=s.pca_reduction_dim, pca_significance_threshold=None)
    elif s.pca_significance_threshold is not None:
        thresholds = given(
            pca_significance_threshold=s.pca_significance_threshold,
            pca_truncation_threshold=s.pca_truncation_threshold,
        )
        builder.pca(**thresholds)
    elif s.truncate_dim is not None:
        builder.truncate(reduction_dim=s.truncate_dim)
    if s.upper_tree_num_leaves:
        upper = given(
            avq=s.upper_tree_avq,
            soar_lambda=s.upper_tree_soar_lambda,
            overretrieve_factor=s.upper_tree_overretrieve_factor,
            anisotropic_quantization_threshold=s.upper_tree_anisotropic_quantization_threshold,
        )
        builder.upper_tree(
            num_leaves=s.upper_tree_num_leaves,
            num_leaves_to_search=s.upper_tree_num_leaves_to_search,
            scoring_mode=data[s.upper_tree_scoring_mode],
            **upper,
        )
    if s.num_leaves:
        tree = given(
            training_sample_size=s.training_sample_size,
            min_partition_size=s.min_partition_size,
            training_iterations=s.training_iterations,
            incremental_threshold=s.incremental_threshold,
            avq=s.avq,
            soar_lambda=s.soar_lambda,
            overretrieve_factor=s.overretrieve_factor,
        )
        builder.tree(
            num_leaves=s.num_leaves,
            num_leaves_to_search=s.num_leaves_to_search,
            spherical=s.spherical,
            quantize_centroids=s.quantize_centroids,
            random_init=s.random_init,
            **tree,
        )
    if s.score == "ah":
        codes = given(
            anisotropic_quantization_threshold=s.anisotropic_quantization_threshold,
            training_sample_size=s.ah_training_sample_size,
            training_iterations=s.ah_training_iterations,
        )
        builder.score_ah(
            dimensions_per_block=s.dimensions_per_block,
            hash_type=s.hash_type,
            residual_quantization=s.residual_quantization,
            **codes,
        )
    else:
        builder.score_brute_force(quantize=data[s.score_data])
    if s.reordering_num_neighbors:
        threshold = s.reordering_anisotropic_quantization_threshold
        builder.reorder(
            reordering_num_neighbors=s.reordering_num_neighbors,
            quantize=data[s.reordering_data],
            **given(anisotropic_quantization_threshold=threshold),
        )
    return builder.create_config()


def save(searcher, directory: Path) -> dict[str, str]:
    """Writes ScaNN's files; returns what each of them is, by name."""
    searcher.serialize(str(directory), True)
    assets = directory / _ASSETS
    kinds = {name: kind for kind, name in _ASSET.findall(assets.read_text())}
    assets.unlink()  # Which says where files lie; what they are stands in our own.
    return kinds


def load(directory: Path, assets: dict[str, str]):
    """A `ScannNumpy` from the files that `save` named, and no others.

    Raises:
      InputError: a name that leads elsewhere, or files that ScaNN cannot read.
    """
    import scann_pybind

    check_assets(directory, assets)
    text = "".join(
        f'assets {{ asset_type: {kind} asset_path: "{name}" }}\n' for name, kind in assets.items()
    )
    try:
        return scann_pybind.ScannNumpy(os.path.abspath(directory), text)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{directory}: ScaNN cannot load it ({one_line(error)})") from None


def check_assets(directory: Path, assets: dict[str, str]) -> None:
    """Refuses names of files that ScaNN does not write, and what lies elsewhere."""
    for name, kind in assets.items():
        if not (_NAME.fullmatch(str(name)) and re.fullmatch("[A-Z0-9_]+", str(kind))):
            raise InputError(f"{directory}: {name!r} is no file of an index; build it again")
        if not (directory / name).is_file() or (directory / name).is_symlink():
            raise InputError(f"{directory / name}: no such file; build the index again")


def stored_rows(directory: Path, assets: dict[str, str]) -> np.ndarray:
    """The rows as ScaNN's files hold them: float32 [n, d], without ScaNN.

    Raises:
      InputError: the index holds nothing but codes.
    """
    check_assets(directory, assets)
    names = {kind: directory / name for name, kind in assets.items()}
    if "DATASET_NPY" in names:
        return np.load(names["DATASET_NPY"], allow_pickle=False)
    if "BF16_DATASET_NPY" in names:
        halves = np.load(names["BF16_DATASET_NPY"], allow_pickle=False)
        return (halves.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if "INT8_DATASET_NPY" in names:
        rows = np.load(names["INT8_DATASET_NPY"], allow_pickle=False).astype(np.float32)
        rows /= np.load(names["INT8_MULTIPLIERS_NPY"], allow_pickle=False)
        return rows
    raise InputError(f"{directory}: holds codes alone, which only ScaNN can search")
