"""Sessions of TensorFlow 1's kind, without the remark that the first of a process makes."""

import functools
import os
import sys

import tensorflow as tf


@functools.cache
def start() -> None:
    """Runs a session of nothing, so that TensorFlow makes its remark where nobody reads it.

    At the first session of a process it says on stderr, whatever its log level is, that one of its
    passes is off. Whoever sets TF_CPP_MIN_LOG_LEVEL to 0 reads it.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        options = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
        with tf.Graph().as_default(), tf.compat.v1.Session(config=options) as session:
            session.run(tf.constant(0))
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
