"""The engine that does units on a Spark cluster: one stage, and one task for each unit.

What the tasks make comes back through an accumulator: Spark adds to it once for each task that
succeeded, however often the task was tried, and as soon as it has ended. So the driver records
each unit while the others are being worked on, and loses none of them if it is killed.
"""

import contextlib
import functools
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from fct_tf.common import stores
from fct_tf.common.errors import InputError
from fct_tf.common.files import one_line
from fct_tf.engines.engine import Engine, Made, Tick, Unit

MIN_JAVA = 17
POLL_S = 0.1
_GO_ON = "what is finished is kept; start the same command again to go on"


@contextlib.contextmanager
def open_session(master: str = "") -> Iterator[Engine]:
    """The engine of the session there is, or of one that is stopped at the end of the block.

    That one is started when there is something to do.

    Args:
      master: of a session that is started; empty for the one there is, or what spark-submit, or
        Spark's own configuration, says.

    Raises:
      InputError: no pyspark, no Java; a session on another master is running.
    """
    try:
        from pyspark import SparkContext
    except ImportError as error:
        raise InputError(
            f"``engine=spark``: pyspark cannot be imported ({one_line(error)}); "
            "pip install 'fct_tf[spark]'"
        ) from None
    running = SparkContext._active_spark_context
    if running is not None and master not in ("", running.master):
        raise InputError(
            f"``spark_master={master}``: a session on {running.master} is running; stop it, or "
            "leave ``spark_master`` out"
        )
    if running is None and not _is_submitted():
        _check_java()
    with contextlib.ExitStack() as stack:

        @functools.cache
        def context() -> Any:
            return running or stack.enter_context(_started(master))

        yield lambda make, units, tick, name: run(context(), make, units, tick, name)


@contextlib.contextmanager
def _started(master: str) -> Iterator[Any]:
    """A SparkContext of our own; `InputError` where Spark does not start."""
    from pyspark import SparkConf, SparkContext

    # Otherwise the workers take what `python3` means to them.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = SparkConf()
    if not _is_submitted():
        settings.set("spark.app.name", "fct_tf")
        # Our own bar shows the progress, and one line what went wrong.
        settings.set("spark.ui.showConsoleProgress", "false").set("spark.log.level", "ERROR")
    if master:
        settings.setMaster(master)
    try:
        with warnings.catch_warnings():
            # Of Lance, about the fork in which Java is started and nothing else.
            warnings.filterwarnings("ignore", "lance is not fork-safe")
            context = SparkContext(conf=settings)
    except Exception as error:  # Whatever Java raised.
        where = f"``spark_master={master}``" if master else "``engine=spark``"
        message = _said(error)
        if "JAVA_GATEWAY_EXITED" in message:
            message = "Java says above why; a master is local[2], spark://HOST:7077, yarn or such"
        raise InputError(f"{where}: Spark does not start ({message})") from None
    logging.info("Spark %s on %s", context.version, context.master)
    try:
        yield context
    finally:
        context.stop()


def _is_submitted() -> bool:
    """Whether spark-submit started this program: it has a Java, a master and a name."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    remedy = f"install Java {MIN_JAVA} or newer (Debian: apt-get install openjdk-17-jre-headless)"
    try:
        asked = subprocess.run([java or "java", "-version"], capture_output=True, text=True)
    except OSError:
        raise InputError(f"``engine=spark``: no Java here; {remedy}, or set JAVA_HOME") from None
    # `version "17.0.15"`, and of old ones `version "1.8.0_392"`.
    match = re.search(r'version "(?:1\.)?(\d+)', asked.stderr)
    if match and int(match[1]) < MIN_JAVA:
        raise InputError(f"``engine=spark``: {java} is Java {match[1]}; {remedy}, or set JAVA_HOME")


def run(
    context: Any,  # A SparkContext.
    make: Callable[[Unit, Tick], Made],
    units: Sequence[Unit],
    tick: Tick,
    name: str,
) -> Iterator[tuple[Unit, Made]]:
    """Makes units as the tasks of one stage, see `fct_tf.engines.engine.Engine`."""
    from pyspark import cloudpickle
    from pyspark.accumulators import AccumulatorParam

    class Appending(AccumulatorParam):
        def zero(self, value: list) -> list:
            return []

        def addInPlace(self, value1: list, value2: list) -> list:
            value1.extend(value2)
            return value1

    if not units:
        return
    group = uuid.uuid4().hex
    # Apart from the tasks, each of which would carry it: model paths, manifests, perhaps vectors.
    carried = stores.carried(), cloudpickle.dumps(make)
    pickled = context.broadcast(cloudpickle.dumps(carried))
    home = socket.gethostname(), os.getcwd()
    results, rows = context.accumulator([], Appending()), context.accumulator(0)

    def task(numbered: Iterator[tuple[int, Unit]]) -> list:
        for place, unit in numbered:
            results.add([(place, *_attempt(group, pickled, unit, rows.add, home))])
        return []

    failed: list[Exception] = []

    def submit() -> None:
        try:
            context.setJobGroup(group, name, interruptOnCancel=True)
            context.setLocalProperty("callSite.short", f"{name} ({len(units)} units)")
            # As many slices as units: a task for each, whichever executor is free.
            tasks = context.parallelize(list(enumerate(units)), len(units))
            context.runJob(tasks.setName(name), task)
        except Exception as error:
            failed.append(error)

    job = threading.Thread(target=submit, name=f"spark {name}", daemon=True)
    job.start()
    reported_rows = handed = 0
    try:
        while True:
            running = job.is_alive()  # Before the look: what comes after it is not missed.
            done = rows.value
            tick(done - reported_rows)
            reported_rows, outcomes = done, results.value[:]
            del results.value[: len(outcomes)]  # They may be large.
            for place, error, output in outcomes:
                if error is None:
                    handed += 1
                    yield units[place], output
            bad = [(place, error) for place, error, _ in outcomes if error is not None]
            if bad:
                raise InputError(min(bad)[1])
            if not running:
                break
            job.join(POLL_S)
        if failed:
            raise _failure(failed[0])
        if handed != len(units):
            raise RuntimeError(f"Spark has done {handed} of {len(units)} units of {name!r}")
    finally:
        if job.is_alive():
            context.cancelJobGroup(group)
            job.join()
        pickled.unpersist()


def _failure(error: Exception) -> Exception:
    """What to raise where Spark gives a job up, after it has tried again as often as it is told."""
    message = _said(error, lines=False)
    absent = re.search(r"ModuleNotFoundError: (No module named \S+)", message)
    if absent:
        return InputError(
            f"Spark: a worker says {absent[1]}; give the workers this environment, see "
            "docs/guides/spark.md"
        )
    if "Traceback (most recent call last)" in message:
        return RuntimeError(message)  # A bug: where it lies is in there.
    return InputError(f"Spark gave up: {message.splitlines()[0]}; {_GO_ON}")


def _said(error: Exception, *, lines: bool = True) -> str:
    """What an exception of Java says, on one line if that is wanted."""
    raised = getattr(error, "java_exception", None)
    message = stores.masked(
        str(raised.getMessage() or raised) if raised is not None else str(error)
    )
    return one_line(message)[:500] if lines else message


# On the workers --------------------------------------------------------------------------------

# What the process works on: (job, `make`). A worker process does many units of a job.
_current: tuple[str, Any] = ("", None)


def _attempt(
    group: str, pickled: Any, unit: Any, tick: Tick, home: tuple[str, str]
) -> tuple[str | None, Any]:
    """(None, what was made of the unit), or of bad input (the message, None): that is no failure,
    which Spark would try again.

    home: machine and working directory of the driver.
    """
    global _current
    host, directory = home
    try:
        with contextlib.ExitStack() as stack:
            if os.path.isdir(directory):  # Relative paths mean what they mean to the driver.
                stack.enter_context(contextlib.chdir(directory))
            if _current[0] != group:
                _use_cores()
                _current = "", None
                store_access, making = pickle.loads(pickled.value)
                stores.carry(store_access)  # First: galleries are opened as they are unpickled.
                _current = group, pickle.loads(making)
            return None, _current[1](unit, tick)
    except InputError as error:
        here = socket.gethostname()
        # A path may be there on the one machine and not on the other.
        return stores.masked(error.marked) + ("" if here == host else f" (on {here})"), None


def _use_cores() -> None:
    """Lets TensorFlow compute with the cores of a task: the others have tasks of their own."""
    from pyspark import TaskContext

    context = TaskContext.get()
    cores = str(context.cpus() if context else 1)
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, cores)
