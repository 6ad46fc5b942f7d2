"""Units of work done one after the other here, or on many machines.

A unit is what a job records: a fragment of a table, a chunk of images, a block of queries. Whoever
has units to do is given an engine and takes what it hands back, in any order:

    for unit, made in engine(make, units, bar.update, "upgrade embedding_fct"):
        job.record(name_of(unit), made)

On Spark, `make` runs in other processes, once more where it failed, and at times twice at once. So
it writes files of its own and nothing else, and what it holds and returns can be pickled. Of a unit
that was made twice one result is handed back.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from fct_tf.common.errors import InputError

Unit = TypeVar("Unit")
Made = TypeVar("Made")
Tick = Callable[[int], object]  # Told how many rows more have been done.


class Engine(Protocol):
    def __call__(
        self,
        make: Callable[[Unit, Tick], Made],
        units: Sequence[Unit],
        tick: Tick,
        name: str,
    ) -> Iterator[tuple[Unit, Made]]:
        """Makes each unit and hands back (unit, what was made of it), as it is finished.

        Args:
          make: from a unit, and what it tells of the rows that it has done.
          units: what to do.
          tick: called in this process with numbers of rows.
          name: of the work, for those who watch the cluster.

        Raises:
          InputError: of `make`; or the cluster gave up. What was handed back before is good.
        """
        ...


def local(
    make: Callable[[Unit, Tick], Made], units: Sequence[Unit], tick: Tick, name: str
) -> Iterator[tuple[Unit, Made]]:
    """The engine of this process: one unit after the other."""
    for unit in units:
        yield unit, make(unit, tick)


@contextlib.contextmanager
def open_engine(name: str = "local", spark_master: str = "") -> Iterator[Engine]:
    """The engine `local` or `spark`.

    Args:
      spark_master: of a session that is started for this, such as `local[2]` or
        `spark://HOST:7077`; empty for the session there is, or what spark-submit says.

    Raises:
      InputError: another name, a master without Spark; no pyspark or Java.
    """
    if name not in ("local", "spark"):
        raise InputError(f"``engine={name}``: it must be local or spark")
    if name == "local":
        if spark_master:
            raise InputError(f"``spark_master={spark_master}``: goes with ``engine=spark``")
        yield local
        return
    from fct_tf.engines import spark

    with spark.open_session(spark_master) as engine:
        yield engine
