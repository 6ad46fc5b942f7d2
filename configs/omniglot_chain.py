"""Omniglot, three versions in sequence: a third, two thirds, then all of the training classes.

What a system meets that changes its model more than once: what compatibility is left between the
third version's queries and the first version's gallery. Protocol as in configs/omniglot.py, open
setting on the 659 `test` classes; half as wide networks. v2_bct is trained to be compatible with
v1 and v3_bct with v2_bct (BCT, arXiv 2003.11942); the transformations (FCT, arXiv 2112.02805) are
trained between versions that know nothing of each other.

Command (add --config.dataset.data_dir=DIR where TFDS keeps its data elsewhere):
  python -m fct_tf.study --config=configs/omniglot_chain.py --workdir=runs/omniglot_chain
Expected (top-1, %, one seed): v1/v1 60, v2/v2 72, v3/v3 76; FCT v3/T(v1) 59 direct and 56 composed;
BCT v3_bct/v1 30.
Hardware: two CPU cores, half an hour.
"""

from fct_tf import config as schema


def get_config():
    config = schema.experiment("omniglot_chain")
    config.dataset.train = "tfds:omniglot:train"
    config.dataset.gallery = "tfds:omniglot:test"
    config.dataset.image_size = 32

    shares = {"v1": 1 / 3, "v2": 2 / 3, "v3": 1.0, "v2_bct": 2 / 3, "v3_bct": 1.0}
    for name, share in shares.items():
        model = schema.model(train_epochs=12, warmup_epochs=2, batch_size=128, width=0.5)
        model.num_outputs = 964
        model.augment = schema.augment("affine")
        model.optimizer = schema.sgd(0.1)
        if share < 1:
            model.classes.fraction = share
        config.models[name] = model
    config.models.v2_bct.compatibility.update(method="bct", old="v1")
    config.models.v3_bct.compatibility.update(method="bct", old="v2_bct")

    # Drawings have no colour and their reading direction matters; what teaches are hard crops.
    side_info = schema.side_info("simclr", train_epochs=20, warmup_epochs=2, batch_size=256)
    side_info.classes.fraction = 1 / 3
    side_info.backbone.width = 0.5
    side_info.augment = schema.augment(
        "simclr", affine=True, flip=False, jitter=0.0, grayscale=0.0, min_area=0.2
    )
    config.side_info = side_info

    for name, (source, target) in {
        "h12": ("v1", "v2"),
        "h23": ("v2", "v3"),
        "h13": ("v1", "v3"),
    }.items():
        config.transformations[name] = schema.transformation(
            source, target, train_epochs=12, warmup_epochs=2, batch_size=256
        )
    # What a gallery is that was upgraded to v2 before v3 came.
    config.transformations.composed = schema.transformation("v1", "v3")
    config.transformations.composed.compose = ("h12", "h23")

    versions = ("v1", "v2", "v3")
    config.chains.independent = schema.chain(*versions)
    config.chains.bct = schema.chain("v1", "v2_bct", "v3_bct")
    config.chains.fct = schema.chain(*versions, transformations=("h12", "h23", "h13"))
    config.chains.fct_composed = schema.chain(*versions, transformations=("h12", "h23", "composed"))
    return config
