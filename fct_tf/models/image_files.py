"""From the bytes of an image file to upright pixels, in TensorFlow's own operations.

The data pipeline and the exported query encoder both decode here, so that a photograph is the
same picture to the gallery and to the server. A camera held upright stores the sensor's rows and
notes in the file's EXIF block how to turn them (CIPA DC-008, tag 0x0112); `tf.io.decode_image`
does not look at it.
"""

import tensorflow as tf

# Of the EXIF orientation; models made before it was read expect images with it `ignored`.
ORIENTATIONS = ("applied", "ignored")

_TAG = 0x0112
_SHORT, _LONG, _BYTE = 3, 4, 1
_EXIF = b"Exif\0\0"
_MAY_HAVE_EXIF = r"\C*(?:Exif\x00\x00|eXIf|EXIF)\C*"  # \C is any byte.
_PNG = b"\x89PNG\r\n\x1a\n"

# Of JPEG, PNG and WebP: where the first part of the file is, and of the ten bytes that a part
# begins with, the powers of 256 (-1: none) of its length, where its name stands and how long that
# is, the name of EXIF, where the data begin, and what a part has beside the data.
_FIRST = [2, 8, 12]
_LENGTH = [
    [-1, -1, 1, 0, -1, -1, -1, -1, -1, -1],
    [3, 2, 1, 0, -1, -1, -1, -1, -1, -1],
    [-1, -1, -1, -1, 0, 1, 2, 3, -1, -1],
]
_NAME_AT, _NAME_SIZE, _NAME = [4, 4, 0], [6, 4, 4], [_EXIF, b"eXIf", b"EXIF"]
_DATA_AT, _BESIDE = [4, 8, 8], [2, 12, 8]
_JPEG, _WEBP = 0, 2


def decode(content: tf.Tensor, orientation: str) -> tf.Tensor:
    """The pixels of an image file.

    Args:
      content: string `[]`, a file that `tf.io.decode_image` reads: JPEG, PNG, WebP, GIF (the
        first frame) or BMP.
      orientation: `applied` or `ignored`.

    Returns:
      uint8 `[h, w, 3]`.

    Raises:
      tf.errors.InvalidArgumentError: when it runs, of a file that cannot be decoded.
    """
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    if orientation == "ignored":
        return image
    return tf.ensure_shape(_turned(image, content), [None, None, 3])


_OF_A_FILE = [tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.string)]


# Traced once in a process.
@tf.function(input_signature=_OF_A_FILE, autograph=False)
def _turned(image: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    # One pass over the bytes, where walking through the parts of a file takes longer than decoding
    # a small image: most files have no EXIF.
    return tf.cond(
        tf.strings.regex_full_match(content, _MAY_HAVE_EXIF),
        lambda: _turned_by_exif(image, content),
        lambda: tf.identity(image),
    )


# Not inlined: TensorFlow then prepares this large graph at the first image with EXIF, not for each
# data set and epoch, which took longer than decoding a small set.
@tf.function(
    input_signature=_OF_A_FILE, autograph=False, experimental_attributes={"_noinline": True}
)
def _turned_by_exif(image: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    return upright(image, exif_orientation(content))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors `image` `[h, w, c]` as an EXIF orientation, int64 `[]` in 1..8, says."""

    def turned() -> tf.Tensor:
        # 5 to 8 lie on their side. Then 3, 4, 7, 8 are upside down, 2, 3, 6, 7 left to right.
        image_ = tf.cond(
            orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: tf.identity(image)
        )
        mirrored = tf.stack([(orientation - 1) & 2 > 0, orientation & 2 > 0])
        return tf.reverse(image_, tf.boolean_mask(tf.constant([0, 1]), mirrored))

    image_ = tf.cond(orientation > 1, turned, lambda: tf.identity(image))
    return tf.ensure_shape(image_, [None, None, image.shape[-1]])


def exif_orientation(content: tf.Tensor) -> tf.Tensor:
    """The orientation that the EXIF block of a JPEG, PNG or WebP file names.

    Args:
      content: string `[]`, the file.

    Returns:
      int64 `[]` in 1..8; 1 (upright) where there is no such block, or a broken one.
    """
    return _tiff_orientation(_exif_block(content))


def _exif_block(content: tf.Tensor) -> tf.Tensor:
    """The EXIF block of a JPEG, PNG or WebP file; empty: none."""
    starts = tf.stack([_part(content, *place) for place in ((0, 2), (0, 8), (8, 4))])
    matches = tf.cast(starts == [b"\xff\xd8", _PNG, b"WEBP"], tf.int64)
    form = tf.argmax(matches)  # The first, JPEG, where it is none of them; it has no segments then.
    weights = tf.gather(
        tf.constant([[256**k if k >= 0 else 0 for k in row] for row in _LENGTH], tf.int64), form
    )
    size = _size(content)

    def of_form(values: list) -> tf.Tensor:
        return tf.gather(
            tf.constant(values, None if isinstance(values[0], bytes) else tf.int64), form
        )

    def further(position: tf.Tensor, begin: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        del begin
        return (position < size) & (count == 0)

    def step(position: tf.Tensor, begin: tf.Tensor, count: tf.Tensor) -> list[tf.Tensor]:
        del begin
        head = _part(content, position, 10)
        numbers = _numbers(head, 10)
        count = tf.reduce_sum(numbers * weights)
        begin = position + of_form(_DATA_AT)
        named = _part(head, of_form(_NAME_AT), of_form(_NAME_SIZE)) == of_form(_NAME)
        behind = position + of_form(_BESIDE) + count
        is_jpeg, marker = form == _JPEG, numbers[1]
        # Of JPEG, 0xFF and the marker come first. Any number of 0xFF may stand before it. At the
        # image itself (SOS), or where there is no segment, EXIF comes no more.
        filled = is_jpeg & (marker == 0xFF)
        ended = is_jpeg & ((numbers[0] != 0xFF) | (marker == 0xDA) | (marker == 0xD9))
        is_exif = named & ~ended & (~is_jpeg | (marker == 0xE1))
        # Of WebP, the data are filled up to an even length.
        behind += tf.where(form == _WEBP, count % 2, 0)
        behind = tf.where(ended, size, tf.where(filled, position + 1, behind))
        # The length of a JPEG segment counts itself.
        count -= tf.where(is_jpeg, tf.constant(2, tf.int64), 0)
        return [behind, begin, tf.where(is_exif, count, 0)]

    zero = tf.constant(0, tf.int64)
    has_form = tf.reduce_max(matches) > 0
    start = tf.where(has_form, of_form(_FIRST), size)
    _, begin, count = tf.while_loop(further, step, [start, zero, zero])
    return _part(content, begin, count)


def _tiff_orientation(block: tf.Tensor) -> tf.Tensor:
    """The orientation of an EXIF block, which is a TIFF file: its first directory has it."""
    # JPEG files put this before it, and some programs do so in the others.
    start = tf.where(_part(block, 0, 6) == _EXIF, tf.constant(6, tf.int64), 0)
    order = _part(block, start, 4)
    little = order == b"II*\0"
    two, four = (
        tf.where(little, tf.constant(powers, tf.int64), tf.constant(powers[::-1], tf.int64))
        for powers in ([1, 256], [1, 256, 256**2, 256**3])
    )

    def number(digits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(digits * weights, axis=-1)

    directory = start + number(_numbers(_part(block, start + 4, 4), 4), four)
    count = number(_numbers(_part(block, directory, 2), 2), two)
    # Entries of twelve bytes, as many as there really are: a wrong number must not cost memory.
    entries = _part(block, directory + 2, 12 * count)
    count = tf.strings.length(entries) // 12
    table = tf.reshape(_numbers(entries, 12 * count), [count, 12])
    tags, kinds, counts, values = tf.split(table, [2, 2, 4, 4], axis=1)
    kinds = number(kinds, two)
    short, long = number(values[:, :2], two), number(values, four)
    # A SHORT by the standard; some programs write a BYTE or a LONG.
    values = tf.where(kinds == _SHORT, short, tf.where(kinds == _LONG, long, values[:, 0]))
    valid = (number(tags, two) == _TAG) & (number(counts, four) == 1)
    valid &= (kinds == _SHORT) | (kinds == _LONG) | (kinds == _BYTE)
    valid &= (values <= 8) & (little | (order == b"MM\0*"))
    # Zeros, and no entry at all, leave 1.
    return tf.maximum(tf.reduce_max(tf.where(valid, values, 0)), 1)


def _part(text: tf.Tensor, start: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    """Bytes `start` to `start + count` of a string, those that there are."""
    start = tf.minimum(tf.cast(start, tf.int64), _size(text))
    return tf.strings.substr(text, start, tf.maximum(tf.cast(count, tf.int64), 0))


def _size(text: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(text), tf.int64)


def _numbers(text: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """The first bytes of a string, filled up with zeros: int64 `[count]`."""
    # One more: this operation refuses to make an empty tensor.
    digits = tf.io.decode_raw(text, tf.uint8, fixed_length=count + 1)[:count]
    return tf.cast(digits, tf.int64)
