"""The schema of an experiment file: every key, its default, its unit.

An experiment file (`configs/NAME.py`) calls `experiment`, `model`, `transformation` and the
other functions here and changes fields of what they return. The dictionaries are locked: a key
that is not listed here is an error that names the nearest one that is.

Durations carry their unit: of `train_epochs` and `train_steps` exactly one is given, of
`warmup_epochs` and `warmup_steps` at most one.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fct_tf.common.errors import nearest

PAPER_L2 = 2.0**-15

# Augmentations of training images and their settings; `fct_tf.data.augment` implements them.
_AFFINE = {"rotation_degrees": 10.0, "shift": 0.1, "scale": (0.9, 1.1), "fill": 255.0}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "flip": {},
    "affine": _AFFINE,
    "crop_flip": {"min_area": 0.08, "max_area": 1.0, "flip": True},
    "simclr": {
        "min_area": 0.08,
        "max_area": 1.0,
        "flip": True,
        "jitter": 0.8,  # strength of the colour jitter, applied with probability 0.8
        "grayscale": 0.2,  # probability
        "affine": False,  # also rotate, shift and scale, as `affine` does
        **_AFFINE,
    },
}

# Classifiers on top of a backbone, with the scale and margin that None stands for: those of the
# papers (arXiv 1704.06369, 1801.09414, 1801.07698). See `fct_tf.training.margins`.
HEADS: dict[str, dict[str, float]] = {
    "linear": {},
    "normface": {"scale": 30.0, "margin": 0.0},
    "cosface": {"scale": 64.0, "margin": 0.35},
    "arcface": {"scale": 64.0, "margin": 0.5},
}


def experiment(name: str) -> ConfigDict:
    """One whole model change: the data, the models, the transformations, the evaluation."""
    config = ConfigDict()
    config.name = name
    config.seeds = (0,)
    config.dataset = ConfigDict(
        {
            # tfds:NAME:SPLIT, folder:PATH:SPLIT or glyphs:SPLIT; or rows:GALLERY, all of them: then
            # models are `stored` columns of these tables, and no image is read.
            "train": "",
            "gallery": "",
            "query": "",  # empty: the gallery's rows are the queries
            "data_dir": "",  # of TFDS; empty: TFDS_DATA_DIR, otherwise TFDS' own default
            "gallery_classes": classes(),
            "image_size": 32,
            "resize": "bilinear_antialias",  # or center_crop: shorter side / 0.875, then the centre
            "preprocess": "symmetric",  # x/127.5 - 1, or imagenet: its mean and deviation
            "on_bad_image": "error",  # or skip: count and leave out
            "cache": "memory",  # of decoded images: memory, disk:PATH or none
        }
    )
    config.models = ConfigDict()
    config.side_info = side_info(method="none")
    config.transformations = ConfigDict()
    config.chains = ConfigDict()
    config.evaluation = ConfigDict(
        {
            "ks": (1, 2, 5, 10, 20, 50),
            "distance": "l2",  # or cosine
            "bootstrap": 1000,  # resamples behind the confidence intervals
            # Also what is no change of models: side-information by itself and, of a fused search,
            # both models on both sides.
            "more_cases": True,
            "identities": identities(),
            "backfilling": {
                # Backfilling curves of transformations without pairs; empty: none. Of
                # uncertainty (where the transformation has one), random, distance (an oracle),
                # ranks (learns from the rows before each point).
                "policies": (),
                "random_orders": 5,
                "transformations": (),  # whose; empty: all
                # Policies for which there is also the curve with the rest corrected by the rows
                # backfilled so far (22 full evaluations each).
                "corrected": (),
            },
            "scann": {
                # Approximate search through the change, see fct_tf.ann.across; empty: none. A
                # fused search is measured by the old model's index as well, re-ranked.
                "transformations": (),  # whose change: old/old, new/T(old), backfilled, new/new
                "backfilled": (0.2, 0.5),  # shares of the gallery in between
                "num_queries": 1000,  # drawn at random; 0: all
            },
        }
    )
    config.training = ConfigDict(
        {
            "strategy": "one_device",  # or mirrored, multi_worker (TF_CONFIG)
            "devices": 0,  # of mirrored; 0: all there are
            "steps_per_call": 20,
            "checkpoint_minutes": 10.0,
            "deterministic": False,  # bitwise repeatable, slower on GPU
            "threads": 0,  # of TensorFlow; 0: all cores. Of NumPy: OMP_NUM_THREADS
            "embed_batch_size": 256,
        }
    )
    config.lock()
    config.models.unlock()  # Names are the experiment's own.
    config.transformations.unlock()
    config.chains.unlock()
    return config


def identities(fars: tuple = (), fpirs: tuple = ()) -> ConfigDict:
    """Verification and open-set search, labels being identities; off without rates.

    The definitions are in `fct_tf.retrieval.verification` and `fct_tf.retrieval.open_set`.
    """
    return ConfigDict(
        {
            "fars": fars,  # false accept rates of 1:1, as (1e-3, 1e-4); empty: none
            "fpirs": fpirs,  # false alarm rates of 1:N, as (1e-2,); empty: no search
            "absent_share": 0.5,  # of the identities, those that 1:N leaves out of the gallery
            "enrolled_share": 0.5,  # of the others' rows, those that their own others search
        }
    ).lock()


def classes() -> ConfigDict:
    """A subset of the classes; all of them when nothing is given, otherwise give one."""
    return ConfigDict(
        {
            "fraction": placeholder(float),  # the first so many of all, in label order
            "first": placeholder(int),
            "list": placeholder(tuple),
            "file": placeholder(str),  # one label a line
        }
    ).lock()


def augment(name: str, **settings: Any) -> ConfigDict:
    """An augmentation with its settings, defaults filled in."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augment: unknown name {name!r}, expected one of {list(AUGMENTATIONS)}")
    defaults = AUGMENTATIONS[name]
    for key in settings:
        if key not in defaults:
            raise ValueError(
                f"augment {name}: unknown setting {key!r}{nearest(key, list(defaults))}"
            )
    return ConfigDict({"name": name, **defaults, **settings}).lock()


def backbone(**settings: Any) -> ConfigDict:
    """An embedding network; the defaults are the papers'."""
    section = ConfigDict(
        {
            # resnet10, 18, 34, 50 or 101, or keras_cv:NAME (see fct_tf.models.backbone).
            "name": "resnet18",
            "embedding_dim": 128,
            "width": 1.0,
            "stem": "7x7",  # or 3x3: stride 1, no pooling
            "normalize": False,  # L2-normalised embeddings; distance cosine
            "bn_momentum": 0.9,
            "bn_epsilon": 1e-5,
            "dtype": "float32",  # or bfloat16, or float64 to compare computations
        }
    ).lock()
    section.update(settings)
    return section


def schedule(name: str = "cosine") -> ConfigDict:
    """The learning rate over time."""
    return ConfigDict(
        {
            "name": name,  # cosine or constant
            "per": "epoch",  # the rate is set once per epoch, or per step
        }
    ).lock()


def sgd(learning_rate: float = 1.024) -> ConfigDict:
    """Stochastic gradient descent, the papers' backbone recipe (arXiv 2112.02805)."""
    return _optimizer(name="sgd", learning_rate=learning_rate, momentum=0.875)


def adam(learning_rate: float = 5e-4) -> ConfigDict:
    """Adam, the papers' transformation recipe (arXiv 2112.02805)."""
    return _optimizer(name="adam", learning_rate=learning_rate, momentum=0.0)


def _optimizer(**settings: Any) -> ConfigDict:
    return ConfigDict(
        {
            **settings,
            "beta_1": 0.9,
            "beta_2": 0.999,
            "epsilon": 1e-8,
            "l2": PAPER_L2,  # l2 * w is added to the gradient
        }
    ).lock()


def _training(train_epochs: int | None, warmup_epochs: int | None, batch_size: int) -> dict:
    return {
        "train_epochs": _or_placeholder(train_epochs),
        "train_steps": placeholder(int),
        "warmup_epochs": _or_placeholder(warmup_epochs),
        "warmup_steps": placeholder(int),
        "batch_size": batch_size,  # over all replicas
        "schedule": schedule(),
    }


def _or_placeholder(value: int | None) -> Any:
    return placeholder(int) if value is None else value


def model(
    train_epochs: int = 100, warmup_epochs: int = 5, batch_size: int = 1024, **backbone_settings
) -> ConfigDict:
    """One version of the embedding model; the defaults are the papers' recipe."""
    return ConfigDict(
        {
            "backbone": backbone(**backbone_settings),
            "classes": classes(),
            # Outputs of the classifier; 0: one per class trained on.
            "num_outputs": 0,
            "label_smoothing": 0.1,
            "augment": augment("crop_flip"),
            "head": head(),
            "compatibility": compatibility(),
            "optimizer": sgd(),
            **_training(train_epochs, warmup_epochs, batch_size),
        }
    ).lock()


def stored(column: str, classifier: str = "", classifier_labels: str = "") -> ConfigDict:
    """A version of the model of which only embeddings are left: a column of `rows:` tables."""
    return ConfigDict(
        {
            "column": column,
            # For FastFill, as train_transformation takes them: an artifact, .npz or .npy file, and
            # of the latter the label names, one a line.
            "classifier": classifier,
            "classifier_labels": classifier_labels,
            "dim": placeholder(int),  # of the column; study fills it in
        }
    ).lock()


def stored_side_info(column: str = "side_info") -> ConfigDict:
    """Side-information that lies beside the old embeddings of `rows:` tables."""
    return ConfigDict({"method": "stored", "column": column}).lock()


def head(name: str = "linear", scale: float | None = None, margin: float | None = None):
    """The classifier that a backbone is trained with; all but `linear` compare by cosine."""
    section = ConfigDict(
        {
            "name": name,  # linear, normface, cosface or arcface
            "scale": placeholder(float),  # of the cosines; None: the paper's, see HEADS
            "margin": placeholder(float),  # of cosface a cosine, of arcface radians; None: as above
        }
    ).lock()
    section.update(scale=scale, margin=margin)
    return section


def compatibility(method: str = "none", old: str = "old", **settings: Any) -> ConfigDict:
    """What makes a model's embeddings comparable with an older model's, while it is trained.

    The losses are in `fct_tf.training.compatibility`. An embedding of another size than the old
    one is truncated, or zero-padded, to the old size.
    """
    section = ConfigDict(
        {
            "method": method,  # none, bct, l2, triplet or contrastive
            "old": old,  # the older model's name in `models`
            "weight": 1.0,  # of this term beside the classification loss
            "classification": True,  # False: this term alone
            # Of bct, for images of classes that the old model was not trained on: synthesized
            # (a row of the old classifier is made of their mean old embedding), centred (the same
            # without what all old embeddings have in common), leave_out, or
            # distil (of those images only: what the old classifier makes of the old embedding).
            "unseen": "synthesized",
            "scale": placeholder(float),  # of bct, cosine logits; None: as the old head has it
            "distil_temperature": 2.0,
            "margin": 1.0,  # of triplet
            "temperature": 0.05,  # of contrastive
        }
    ).lock()
    section.update(settings)
    return section


def side_info(
    method: str = "simclr",
    train_epochs: int = 100,
    warmup_epochs: int = 5,
    batch_size: int = 512,
    **backbone_settings,
) -> ConfigDict:
    """What is stored beside the old embedding for models to come."""
    return ConfigDict(
        {
            "method": method,  # simclr or none
            "classes": classes(),
            "backbone": backbone(**backbone_settings),
            "augment": augment("simclr"),
            "temperature": 0.1,
            "projection_dim": 128,  # of the head, which is dropped afterwards
            "optimizer": sgd(0.3),
            **_training(train_epochs, warmup_epochs, batch_size),
        }
    ).lock()


def transformation(
    source: str = "old",
    target: str = "new",
    side_info: bool = True,
    train_epochs: int = 80,
    warmup_epochs: int = 5,
    batch_size: int = 1024,
) -> ConfigDict:
    """A map from one model's embeddings to another's; the defaults are the paper's recipe."""
    return ConfigDict(
        {
            "source": source,
            "target": target,
            # gallery: run over stored rows, queries are the target's own; query: run over the
            # queries, the gallery stays as it is and is the target's own.
            "side": "gallery",
            # Nothing is trained: these transformations, one after another, as a gallery meets them
            # that is upgraded with every version.
            "compose": (),
            "side_info": side_info,  # also read the side-information
            # mlp: the paper's network; affine, procrustes: fitted in closed form.
            "map": "mlp",
            # Take the network of this transformation instead of training one; needs `pairs`.
            "base": "",
            "hidden": 2048,
            "affine_init": False,  # start from the ridge-affine map, learn the residual
            # FastFill (arXiv 2303.04766): weight of the cross-entropy of the transformed embedding
            # under the frozen classifier of the target model (the paper: 1), its label smoothing,
            # and what learns a log-variance for each row: none, or heteroscedastic, the paper's
            # loss.
            "discriminative_weight": 0.0,
            "label_smoothing": 0.1,
            "uncertainty": "none",
            "pairs": pairs(),
            "fusion": fusion(),
            "bn_momentum": 0.9,
            "bn_epsilon": 1e-5,
            "dtype": "float32",  # or bfloat16
            # BatchNorm runs in inference mode after this share of the training.
            "freeze_bn_after": 0.5,
            # Rows are held in memory up to this size, streamed from the table beyond it.
            "memory_gb": 4.0,
            "optimizer": adam(),
            **_training(train_epochs, warmup_epochs, batch_size),
        }
    ).lock()


def chain(*versions: str, transformations: tuple[str, ...] = ()) -> ConfigDict:
    """Versions of a model that follow each other, of which every pair is evaluated.

    The queries of each version meet the galleries of all earlier ones (and of itself). Without
    `transformations` these stay as they are, as for models trained to be compatible; with them
    each pair goes through the one that is between its two models, be it composed or not; of a
    fused search its queries are embedded by both.
    """
    return ConfigDict({"versions": versions, "transformations": transformations}).lock()


def pairs(share: float = 0.0, method: str = "kernel") -> ConfigDict:
    """Rows of the gallery itself that the new model has re-embedded; labels are not needed."""
    return ConfigDict(
        {
            "share": share,  # of the gallery's rows that study re-embeds; 0: no pairs
            # kernel: correct the trained map by kernel regression on the pairs (seconds);
            # rows: train on them together with the training table.
            "method": method,
            "max_centres": 4096,  # of kernel
            "batch_share": 1 / 3,  # of rows: their share of every batch
        }
    ).lock()


def fusion(weight: float = 0.0) -> ConfigDict:
    """Fused search: old and new embedding in one row, see `fct_tf.models.fusion`."""
    return ConfigDict(
        {
            # Of the old side, between 0 and 1; 0: no fusion, the map alone.
            "weight": weight,
            # Take the weight that retrieves best among the pairs, which need labels.
            "choose_weight": False,
            "whiten": False,  # make differences within a class alike; needs labels of the rows
            "dims": 0,  # keep so many leading directions; 0: all, d_source + d_target
        }
    ).lock()
