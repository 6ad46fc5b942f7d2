"""Calls that are repeated while a server is busy or restarts, until a deadline.

gRPC's own retry policy ends after five attempts, knows nothing of REST, and cannot be told that
a message which is too large stays too large.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from fct_tf.serving.transport import Failure

T = TypeVar("T")

# A deadline that was missed is not here: the server may be at work on the request still, and
# sending it again makes a slow server slower.
TRANSIENT = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class Deadline:
    """A point in time."""

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds until then; zero afterwards."""
        return max(0.0, self._end - time.monotonic())


def is_transient(failure: Failure) -> bool:
    """Whether the same request may succeed later."""
    too_large = "larger than max" in failure.message  # RESOURCE_EXHAUSTED, of gRPC itself.
    return failure.code in TRANSIENT and not too_large


def until(deadline: Deadline, call: Callable[[float], T]) -> T:
    """What `call` returns, which gets the seconds that are left.

    It is called again after a transient failure, first after 0.1 s, then twice as long each
    time, up to 5 s. Each delay is drawn between zero and that, so that many clients do not come
    back at once.

    Raises:
      Failure: one that is not transient, or the last one before the deadline.
    """
    delay, last = FIRST_DELAY_S, None
    while left := deadline.left_s():
        try:
            return call(left)
        except Failure as failure:
            if last and failure.code == "DEADLINE_EXCEEDED":
                break  # A server that was down and is not up yet: the former says more.
            last = failure
            pause = random.uniform(0, delay)
            if not is_transient(failure) or pause >= deadline.left_s():
                break
        time.sleep(pause)
        delay = min(2 * delay, LONGEST_DELAY_S)
    raise last or Failure("DEADLINE_EXCEEDED", "Deadline Exceeded")
