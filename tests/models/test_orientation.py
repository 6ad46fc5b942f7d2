"""The EXIF orientation of photographs: one decoding for the data pipeline and the export."""

import io
import json
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from fct_tf.common.errors import InputError
from fct_tf.data import by_id, datasets
from fct_tf.gallery import table
from fct_tf.ingest import embed_images
from fct_tf.models import artifact, export, image_files, preprocess
from fct_tf.models.load import load_any

ORIENTATIONS = range(1, 9)
# One way to write each of the eight: what a camera's rows are, of the upright picture.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],  # The picture's right side is the first row.
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def picture(height=48, width=32, seed=0):
    """No two of the eight views of it are alike; smooth, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tiff(orientation, order="<", *, kind=3, count=1, tag=0x0112):
    """An EXIF block with the maker's name before the tag, as cameras write it."""
    value = {1: "B3x", 3: "H2x", 4: "I"}.get(kind, "I")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return (
        start
        + struct.pack(f"{order}IH", 8, 2)
        + struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"abc\0")
        + struct.pack(f"{order}HHI{value}", tag, kind, count, orientation)
        + struct.pack(f"{order}I", 0)
    )


def encode(pixels, form, exif=b"", **options):
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else options
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, form, exif=exif, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def orientation_of():
    traced = tf.function(
        image_files.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)]
    )
    return lambda content: int(traced(content))


@pytest.fixture(scope="module")
def decode():
    signature = [tf.TensorSpec([], tf.string)]
    traced = tf.function(lambda c: image_files.decode(c, "applied"), input_signature=signature)
    return lambda content: traced(content).numpy()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_eight_orientations(decode, orientation_of, form, order, orientation):
    upright = picture()
    exif = tiff(orientation, order)
    exif = b"Exif\0\0" + exif if form == "JPEG" else exif
    content = encode(STORED[orientation](upright), form, exif, lossless=True)
    assert orientation_of(content) == orientation
    pixels = decode(content)
    assert pixels.shape == upright.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - upright).max() <= (12 if form == "JPEG" else 0)
    # Pillow, another reader, sees the same picture; of a JPEG the two round differently.
    read = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.abs(pixels.astype(int) - np.asarray(read)).max() <= 12


JPEG, PNG = (encode(picture(), form) for form in ("JPEG", "PNG"))


def segment(data, marker=0xE1):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_with(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


EXIF_6 = segment(b"Exif\0\0" + tiff(6))


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(EXIF_6),  # Before JFIF's own segment.
        JPEG[:20] + EXIF_6 + JPEG[20:],  # Behind it.
        jpeg_with(segment(b"http://ns.adobe.com/xap/1.0/\0<x/>"), EXIF_6),  # XMP is APP1, too.
        jpeg_with(segment(b"ICC_PROFILE\0" + bytes(60_000), 0xE2), EXIF_6),
        jpeg_with(segment(b"a comment, EXIF Exif\0\0 II*\0", 0xFE), EXIF_6),
        jpeg_with(b"\xff\xff" + EXIF_6),  # Filled up.
        jpeg_with(segment(b"Exif\0\0" + tiff(6, kind=4))),
        jpeg_with(segment(b"Exif\0\0" + tiff(6, ">", kind=4))),
        jpeg_with(segment(b"Exif\0\0" + tiff(6, kind=1))),
        PNG[:-12] + struct.pack(">I", len(tiff(6))) + b"eXIf" + tiff(6) + bytes(4) + PNG[-12:],
        encode(picture(), "WEBP", b"Exif\0\0" + tiff(6, ">")),  # As some programs write it.
    ],
)
def test_where_files_keep_it(orientation_of, content):
    assert orientation_of(content) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        EXIF_6,
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff",
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffeXIf",
        b"BM Exif\0\0" + tiff(6),
        JPEG,
        PNG,
        JPEG[:-2] + EXIF_6 + JPEG[-2:],  # Behind the image.
        jpeg_with(segment(b"a comment: " + EXIF_6, 0xFE)),  # Inside a segment of another kind.
        *(jpeg_with(segment(b"Exif\0\0" + tiff(6)[:size])) for size in range(0, 34, 3)),
        *(jpeg_with(segment(b"Exif\0\0" + tiff(wrong))) for wrong in (0, 9, 65535)),
        jpeg_with(segment(b"Exif\0\0" + tiff(6, count=2))),
        jpeg_with(segment(b"Exif\0\0" + tiff(6, kind=9))),
        jpeg_with(segment(b"Exif\0\0" + tiff(6, tag=0x0113))),
        jpeg_with(segment(b"Exif\0\0" + b"JJ" + tiff(6)[2:])),
        jpeg_with(segment(b"Exif\0\0II*\0" + b"\xff" * 30)),  # A directory far behind the end.
        jpeg_with(segment(b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),  # 65,535 entries, none there.
    ],
)
def test_without_or_with_broken_exif_images_stand_upright(orientation_of, decode, content):
    assert orientation_of(content) == 1
    if content.startswith((JPEG[:2], PNG[:8])) and content.endswith((JPEG[-2:], PNG[-8:])):
        assert decode(content).shape == picture().shape


def write_photos(folder, orientations=ORIENTATIONS):
    """The same picture upright and as eight cameras store it."""
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(encode(picture(), "PNG"))
    for value in orientations:
        content = encode(STORED[value](picture()), "PNG", tiff(value, "<>"[value % 2]))
        (folder / f"{value}.png").write_bytes(content)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    write_photos(path / "gallery" / "cat")
    return path


def pixels_of(images):
    return np.concatenate([batch["image"] for batch in datasets.eval_batches(images, 4)])


@pytest.mark.parametrize("resize", datasets.RESIZES)
@pytest.mark.parametrize("cache", ["memory", "none", "disk"])
def test_folders_are_read_upright_and_caches_do_not_mix(photos, tmp_path, cache, resize):
    cache = f"disk:{tmp_path}" if cache == "disk" else cache

    def read(**arguments):
        settings = {"image_size": 14, "cache": cache, "resize": resize, **arguments}
        return datasets.load(f"folder:{photos}:gallery", **settings)

    for _ in range(2):  # The second time from the disk cache.
        ignored, applied = read(orientation="ignored"), read()
        assert applied.orientation == "applied"
        rows = pixels_of(applied)
        np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))
        rows = pixels_of(ignored)
        np.testing.assert_array_equal(rows[0], rows[1])
        assert all(np.abs(row.astype(int) - rows[0]).max() > 10 for row in rows[2:])
    with pytest.raises(InputError, match="orientation: choose applied or ignored"):
        read(orientation="both")


class Cameras(tfds.core.GeneratorBasedBuilder):
    """The same picture as eight cameras store it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for value in ORIENTATIONS:
            content = encode(STORED[value](picture()), "PNG", tiff(value))
            yield value, {"image": io.BytesIO(content), "label": 0}


def test_tfds_images_are_read_upright(tmp_path):
    builder = Cameras(data_dir=str(tmp_path))
    builder.download_and_prepare()
    images = datasets.load("tfds:cameras:train", data_dir=str(tmp_path), image_size=14)
    rows = pixels_of(images)
    assert len(rows) == 8
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Keras file of one's own, and artifacts of it that apply and ignore the orientation."""
    directory = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    image = keras.Input([14, 14, 3])
    model = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(image)))
    model.save(directory / "own.keras")
    for how in ("applied", "ignored"):
        settings = preprocess.preprocessing("symmetric", 14, orientation=how)
        info = {"name": how, "distance": "l2", "preprocessing": settings}
        artifact.save(directory / how, model, "backbone", info)
    return directory


def test_what_models_say_of_it(models):
    described = {
        how: json.loads((models / how / "model.json").read_text()) for how in ("applied", "ignored")
    }
    assert described["applied"]["preprocessing"]["orientation"] == "applied"
    # As artifacts made before say nothing, and with the same space.
    assert {*described["ignored"]["preprocessing"]} == {"size", "resize", "mean", "std"}
    assert described["applied"]["space"] != described["ignored"]["space"]
    own = {how: load_any(models / "own.keras", orientation=how) for how in ("", "ignored")}
    assert own[""].preprocessing["orientation"] == "applied"
    assert "orientation" not in own["ignored"].preprocessing
    assert own[""].space != own["ignored"].space
    # Beside columns made before, it goes on as it was.
    for name in ("", "raw"):
        for known in (own["ignored"].space, own["ignored"].info["earlier_space"], own[""].space):
            found = load_any(
                models / "own.keras", known={known: None}, preprocessing=name
            ).preprocessing
            assert ("orientation" in found) == (known == own[""].space)
    with pytest.raises(InputError, match="knows its own orientation"):
        load_any(models / "applied", orientation="ignored")


@pytest.mark.parametrize("how", ["applied", "ignored"])
def test_embedding_and_export_agree(photos, models, tmp_path, how):
    gallery = str(tmp_path / "g.lance")
    images = f"folder:{photos}:gallery"
    embed_images.embed_gallery(gallery, images, str(models / how), "e")
    rows = table.open_gallery(gallery).read(["e"])
    vectors = rows.vectors["e"]
    same = np.abs(vectors - vectors[0]).max(axis=1) < 1e-4
    assert same.tolist() == [True, True] + [how == "applied"] * 7
    encoder = tf.saved_model.load(str(export.export_query_encoder(models / how, tmp_path / "m")))
    contents = tf.constant([(photos / name).read_bytes() for name in rows.ids])
    got = encoder.signatures["encoded"](image_bytes=contents)["embedding"]
    np.testing.assert_allclose(got, vectors, atol=1e-3)
    loaded = artifact.load(models / how)
    found = by_id.load(
        images, image_size=14, resize="bilinear_antialias",
        orientation=preprocess.orientation(loaded.preprocessing),
    )  # fmt: skip
    (batch,) = found.batches(found.find(rows.ids), 16)
    np.testing.assert_allclose(loaded.embed(batch["image"]), vectors, atol=1e-4)


def test_images_loaded_in_the_other_way_are_refused(photos, models, tmp_path):
    images = datasets.load(f"folder:{photos}:gallery", image_size=14)
    with pytest.raises(InputError, match="EXIF orientation applied, .* made with it ignored"):
        embed_images.embed_gallery(str(tmp_path / "g"), images, str(models / "ignored"), "e")


def test_the_export_needs_no_python(models, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    path = export.export_query_encoder(models / "applied", tmp_path / "m")
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    operations = {n.op for f in graph.library.function for n in f.node_def}
    assert "DecodeImage" in operations and not any("PyFunc" in name for name in operations)
