"""What a transformation can do, on the stored embeddings of one model change: seconds to minutes.

Rows of Omniglot as configs/omniglot.py has it, embedded by other people's models: `train.lance`
(19,280 rows of 964 classes) and `test.lance` (13,180 rows of 659 classes that no model saw), with
the columns embedded_old, embedding_new and side_info, 128 values each, compared by L2. With
`:fastfill` also the new model's classifier, `new_classifier.npy`, float [964, 128], whose rows are
the training labels in alphabetical order, and `labels.txt` with these labels, one a line.

  :maps      the paper's transformation, settings changed one at a time, the closed-form maps (the
             default; one seed)
  :pairs     shares of the gallery re-embedded as pairs, with and without side-information
  :fastfill  FastFill and each of its ingredients alone: backfilling curves, three policies
  :ranks     three of these, in an order learnt from the rows backfilled so far, and the rest
             corrected by them
  :fused     queries embedded by both models: plain and whitened, at shares of the gallery
             re-embedded, with fewer dimensions, and the map alone (three seeds, one training each
             with and without side-information)

Command (in the directory of the tables; elsewhere name them, --config.dataset.train=rows:PATH):
  python -m fct_tf.study --config=configs/reference_rows.py:maps --workdir=runs/reference_rows \\
      --config.training.threads=1
Expected (top-1 / top-5 / mAP, %): old/old 71.03 / 89.77 / 45.50, new/new 78.52 / 93.40 / 54.72,
affine 60.36 / 84.65 / 39.57, affine_side_info 62.58 / 86.25 / 41.05, procrustes 54.85 / 82.24 /
36.09, fct about 66 / 88 / 43.
Hardware: two CPU cores, two to five minutes for each transformation that is trained.
"""

from fct_tf import config as schema

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
DIMS = (192, 128, 64)  # of a fused row, of 256

DEVIATIONS: dict[str, dict] = {
    "fct_affine_init": {"affine_init": True},
    "fct_narrow": {"hidden": 512},
}
DISCRIMINATIVE: dict = {"discriminative_weight": 1.0}
HETEROSCEDASTIC: dict = {"uncertainty": "heteroscedastic"}


def get_config(what="maps"):
    config = schema.experiment("reference_rows")
    config.dataset.train = "rows:train.lance"
    config.dataset.gallery = "rows:test.lance"
    config.models.old = schema.stored("embedding_old")
    config.models.new = schema.stored("embedding_new")
    config.side_info = schema.stored_side_info("side_info")
    chosen = {
        "maps": _maps,
        "pairs": _pairs,
        "fastfill": _fastfill,
        "ranks": _ranks,
        "fused": _fused,
    }
    if what not in chosen:
        raise ValueError(f"{what!r} after the colon; write one of {', '.join(chosen)}")
    chosen[what](config)
    return config


def _add(config, name, **settings):
    """One more transformation; without side-information where its name says so."""
    section = schema.transformation(train_epochs=12, warmup_epochs=2, batch_size=256)
    section.side_info = not name.endswith("_no_side_info") and settings.get("map") != "procrustes"
    section.update(settings)
    config.transformations[name] = section


def _maps(config):
    _add(config, "fct_no_side_info")
    _add(config, "fct")
    _add(config, "affine", map="affine", side_info=False)
    _add(config, "affine_side_info", map="affine")
    _add(config, "procrustes", map="procrustes")
    for name, settings in DEVIATIONS.items():
        _add(config, name, **settings)


def _pairs(config):
    for end in ("", "_no_side_info"):
        _add(config, f"fct{end}")
        _add(config, f"affine{end}", map="affine")
        for share in SHARES:
            name = f"fct_pairs_{100 * share:g}{end}"
            _add(config, name, base=f"fct{end}", pairs={"share": share})
        rows = {"share": SHARES[-1], "method": "rows"}
        _add(config, f"fct_rows_20{end}", pairs=rows)
        _add(config, f"affine_pairs_20{end}", map="affine", pairs={"share": SHARES[-1]})
        # On the pairs alone, all but.
        _add(config, f"affine_rows_20{end}", map="affine", pairs={**rows, "batch_share": 0.999})
    _add(config, "procrustes_no_side_info", map="procrustes")


def _fused(config):
    config.seeds = (0, 1, 2)
    kinds = {"fused": {"weight": 0.5}, "whitened": {"weight": 0.5, "whiten": True}}
    for end in ("", "_no_side_info"):
        base = f"fct{end}"
        _add(config, base)
        for share in SHARES:
            _add(config, f"fct_pairs_{100 * share:g}{end}", base=base, pairs={"share": share})
        for kind, fusion in kinds.items():
            _add(config, f"fct_{kind}{end}", base=base, fusion=fusion)
            for share in SHARES:
                settings = {"base": base, "pairs": {"share": share}, "fusion": fusion}
                _add(config, f"fct_{kind}_pairs_{100 * share:g}{end}", **settings)
    for kind, fusion in kinds.items():
        for dims in DIMS:
            _add(config, f"fct_{kind}_dims_{dims}", base="fct", fusion={**fusion, "dims": dims})


def _fastfill(config):
    config.models.new.classifier = "new_classifier.npy"
    config.models.new.classifier_labels = "labels.txt"
    methods: dict[str, dict] = {
        "fct_no_side_info": {},
        "fastfill_no_side_info": {**DISCRIMINATIVE, **HETEROSCEDASTIC},
        "discriminative_no_side_info": DISCRIMINATIVE,
        "heteroscedastic_no_side_info": HETEROSCEDASTIC,
        "fct": {},
        "fastfill": {**DISCRIMINATIVE, **HETEROSCEDASTIC},
        "heteroscedastic": HETEROSCEDASTIC,
    }
    for name, settings in methods.items():
        _add(config, name, dtype="bfloat16", **settings)
    config.evaluation.backfilling.policies = ("random", "uncertainty", "distance")


def _ranks(config):
    _fastfill(config)
    config.evaluation.backfilling.update(
        policies=("random", "ranks"),
        transformations=(
            "fct_no_side_info",
            "fastfill_no_side_info",
            "heteroscedastic_no_side_info",
        ),
        corrected=("random", "ranks"),
    )
    for name in {*config.transformations} - {*config.evaluation.backfilling.transformations}:
        del config.transformations[name]
