"""Two published text models, known by their embeddings alone: a study that starts from rows.

The old model is paraphrase-MiniLM-L3-v2, the new one all-MiniLM-L6-v2, both 384 values compared by
cosine. Transformations are fitted on 4,620 texts of the 77 intents of BANKING77; retrieval is among
9,000 texts of the 150 intents of CLINC150, none of which is in BANKING77. There is no image, no
side-information and no training of either model.

For vectors of your own copy this file: name the tables, the columns and the distance. Tables are
galleries, which import_gallery makes of .npy, Parquet or HDF5 files; both models' columns are in
each of them. The pairs are rows of the gallery whose new embedding counts as known.

Command (in a directory that has train.lance and test.lance, or name them):
  python -m fct_tf.study --config=configs/text_rows.py --workdir=runs/text_rows \\
      --config.dataset.train=rows:DIR/train.lance --config.dataset.gallery=rows:DIR/test.lance
Expected (top-1 / top-5 / mAP, %): old/old 89.87 / 96.81 / 57.99, new/new 92.47 / 98.06 / 67.30, the
affine map 82.3 / 94.1 / 49.4 without pairs and 92.3 / 97.9 / 67.6 with a fifth of the gallery
re-embedded. With the old model on the queries too (affine_fused) 91.46 / 97.58 / 60.70 without
pairs, 91.38 / 97.36 / 61.14 with 1 %, 91.71 / 97.41 / 63.40 with 5 %, 92.00 / 97.74 / 65.57 with a
fifth; negative flips 1.4 % of the queries without pairs, 12.4 % by the affine map alone. The
paper's network has too few rows here: far below the affine map without pairs.
Hardware: two CPU cores, a quarter of an hour a seed.
"""

from fct_tf import config as schema


def get_config():
    config = schema.experiment("text_rows")
    config.dataset.train = "rows:train.lance"
    config.dataset.gallery = "rows:test.lance"
    config.models.old = schema.stored("embedding_old")
    config.models.new = schema.stored("embedding_new")
    config.evaluation.distance = "cosine"

    def add(name, **settings):
        recipe = schema.transformation(train_epochs=40, warmup_epochs=2, batch_size=256)
        recipe.update(side_info=False, **settings)
        config.transformations[name] = recipe

    add("affine", map="affine")
    add("procrustes", map="procrustes")
    add("fct")
    for share in (0.05, 0.2):
        for base in ("affine", "fct"):
            add(f"{base}_pairs_{100 * share:g}", base=base, pairs={"share": share})
    add("affine_pairs_1", base="affine", pairs={"share": 0.01})
    # The old model on the queries too. Whitening harms here.
    fusion = {"weight": 0.5}
    add("affine_fused", base="affine", fusion=fusion)
    for share in (0.01, 0.05, 0.2):
        name = f"affine_fused_pairs_{100 * share:g}"
        add(name, base="affine", pairs={"share": share}, fusion=fusion)
    config.evaluation.backfilling.update(
        policies=("random", "distance"),
        transformations=("affine", "fct"),
    )
    return config
