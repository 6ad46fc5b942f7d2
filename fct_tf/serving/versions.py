"""Versions on disk and in memory: which there should be, which there are, and the way between.

The policy is TF Serving's availability-preserving one: what is new is loaded before what is old
is unloaded, and a version that does not load leaves the old one serving. A version in use by a
request is unloaded when the request is done.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import grpc
import tensorflow as tf
from absl import logging

from fct_tf.serving.errors import ServingError

# name, version, path -> the loaded version, which has a `close()`.
Load = Callable[[str, int, str], Any]


class State(IntEnum):
    """Numbers and names as in `ModelVersionStatus.State`."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """A version that was ever wanted. `error` is that of a load that failed for good."""

    number: int
    path: str
    state: State = State.START
    error: ServingError | None = None
    # Of a try that will be repeated, for a person; TF Serving's status does not show it.
    last_error: ServingError | None = None
    tries: int = 0
    wanted: bool = True
    uses: int = 0
    servable: Any = field(default=None, repr=False)
    retry: threading.Timer | None = field(default=None, repr=False)


def on_disk(name: str, base_path: str) -> dict[int, str]:
    """The versions of a model under its base path: number -> path.

    Every name that is a whole number counts, `00000007` as 7; everything else is left alone, so
    a staging directory with another name may lie beside the versions.

    Raises:
      ServingError: there is no such base path.
    """
    try:
        names = _list(base_path)
    except (OSError, tf.errors.OpError) as error:
        raise ServingError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Could not find base path {base_path} for servable {name} with error {error}",
        ) from None
    # Sorted, so that of `007` and `7` the last one stands, as in TF Serving.
    numbered = {int(name): name for name in sorted(names) if re.fullmatch(r"-?\d{1,19}", name)}
    return {
        number: f"{base_path.rstrip('/')}/{name}"
        for number, name in numbered.items()
        if -(1 << 63) <= number < 1 << 63
    }


def _list(base_path: str) -> list[str]:
    if os.path.isabs(base_path):
        return os.listdir(base_path)
    if not tf.io.gfile.isdir(base_path):
        raise FileNotFoundError(f"{base_path} not found")
    return [name.rstrip("/") for name in tf.io.gfile.listdir(base_path)]


def wanted(found: Mapping[int, str], policy) -> dict[int, str]:
    """The versions of `found` that a `ServableVersionPolicy` asks for."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return dict(found)
    if choice == "specific":
        return {number: found[number] for number in policy.specific.versions if number in found}
    newest = sorted(found, reverse=True)[: max(policy.latest.num_versions, 1)]
    return {number: found[number] for number in newest}


class Versions:
    """All versions of all models. Thread-safe."""

    def __init__(
        self,
        load: Load,
        *,
        num_load_threads: int = 0,
        num_unload_threads: int = 0,
        max_num_load_retries: int = 5,
        load_retry_interval_s: float = 60.0,
    ):
        self._load = load
        self._max_retries = max_num_load_retries
        self._retry_interval_s = load_retry_interval_s
        self._lock = threading.Condition()
        self._models: dict[str, dict[int, Version]] = {}
        self._goals: dict[str, dict[int, str]] = {}
        # One thread where TF Serving has none of its own: there, waiting for the next try of a
        # broken version stops every other load. Here a timer waits.
        self._loaders = ThreadPoolExecutor(max(1, num_load_threads), "load")
        self._unloaders = ThreadPoolExecutor(max(1, num_unload_threads), "unload")
        self._closed = False

    def want(self, name: str, versions: Mapping[int, str]) -> None:
        """Sets the versions of a model that should be loaded: number -> path."""
        with self._lock:
            if not self._closed:
                self._goals[name] = dict(versions)
                self._follow_goal(name)

    def keep_only(self, names: Container[str]) -> None:
        """Unloads every model that is not among `names`."""
        with self._lock:
            gone = [name for name, goal in self._goals.items() if goal and name not in names]
        for name in gone:
            self.want(name, {})

    def _follow_goal(self, name: str) -> None:
        """Starts the loads and unloads that bring a model to its goal."""
        goal = self._goals.get(name, {})
        model = self._models.setdefault(name, {})
        for version in model.values():
            if version.state == State.UNLOADING or (
                version.state == State.END and not version.wanted
            ):
                continue
            version.wanted = version.number in goal
            if not version.wanted and version.retry is not None:
                version.retry.cancel()
                version.retry = None
                self._end(version, version.last_error)
        for number in sorted(goal, reverse=True):
            existing = model.get(number)
            # One that failed for good is still wanted: it is tried again when it has been away.
            if existing is None or (existing.state == State.END and not existing.wanted):
                model[number] = Version(number, goal[number])
                self._loaders.submit(self._try_load, name, model[number])
        self._unload_superseded(name)
        self._lock.notify_all()

    def _try_load(self, name: str, version: Version) -> None:
        with self._lock:
            if not version.wanted or self._closed:
                self._end(version, None)
                return
            version.state = State.LOADING
            version.tries += 1
            version.retry = None
        try:
            servable = self._load(name, version.number, version.path)
        except Exception as error:  # Whatever a broken directory makes a loader raise.
            self._failed(name, version, error)
            return
        with self._lock:
            version.servable = servable
            version.state = State.AVAILABLE
            logging.info("loaded %s version %d", name, version.number)
            self._follow_goal(name)

    def _failed(self, name: str, version: Version, error: Exception) -> None:
        if not isinstance(error, ServingError):
            logging.exception("loading %s version %d", name, version.number)
            text = f"{type(error).__name__}: {error}"
            error = ServingError(grpc.StatusCode.INTERNAL, text)
        logging.warning("%s version %d does not load: %s", name, version.number, error)
        with self._lock:
            version.last_error = error
            if version.tries > self._max_retries or not version.wanted or self._closed:
                self._end(version, error)
                return
            version.retry = threading.Timer(
                self._retry_interval_s, self._loaders.submit, (self._try_load, name, version)
            )
            version.retry.daemon = True
            version.retry.start()

    def _end(self, version: Version, error: ServingError | None) -> None:
        version.state = State.END
        version.error = error
        self._lock.notify_all()

    def _unload_superseded(self, name: str) -> None:
        """Lets go of versions no longer wanted, once one that is wanted serves."""
        model = self._models[name].values()
        waiting = any(version.wanted for version in model)
        serving = any(version.wanted and version.state == State.AVAILABLE for version in model)
        if waiting and not serving:
            return
        for version in model:
            if not version.wanted and version.state == State.AVAILABLE:
                version.state = State.UNLOADING
                if version.uses == 0:
                    self._unload_soon(name, version)

    def _unload_soon(self, name: str, version: Version) -> None:
        servable, version.servable = version.servable, None
        if servable is not None:  # Else `close` was faster.
            self._unloaders.submit(self._unload, name, version, servable)

    def _unload(self, name: str, version: Version, servable) -> None:
        try:
            servable.close()
        finally:
            with self._lock:
                version.wanted = False
                self._end(version, None)
                if not self._closed:
                    self._follow_goal(name)
            logging.info("unloaded %s version %d", name, version.number)

    @contextlib.contextmanager
    def use(self, name: str, number: int | None = None) -> Iterator:
        """The loaded version, which stays loaded inside the `with`; None for the highest one.

        Raises:
          ServingError: NOT_FOUND, it is not loaded.
        """
        with self._lock:
            version = self._find(name, number)
            version.uses += 1
            servable = version.servable
        try:
            yield servable
        finally:
            with self._lock:
                version.uses -= 1
                if version.uses == 0 and version.state == State.UNLOADING:
                    self._unload_soon(name, version)
                    self._lock.notify_all()

    def _find(self, name: str, number: int | None) -> Version:
        model = self._models.get(name, {})
        if number is None:
            loaded = [v.number for v in model.values() if v.state == State.AVAILABLE]
            if loaded:
                return model[max(loaded)]
            request = f"Latest({name})"
        else:
            version = model.get(number)
            if version is not None and version.state == State.AVAILABLE:
                return version
            request = f"Specific({name}, {number})"
        raise ServingError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")

    def states(self, name: str) -> dict[int, tuple[State, ServingError | None]]:
        """Every version ever wanted, highest first: number -> state and error."""
        with self._lock:
            model = self._models.get(name, {})
            return {n: (model[n].state, model[n].error) for n in sorted(model, reverse=True)}

    def last_errors(self, name: str) -> dict[int, ServingError]:
        """The errors of the last tries, also of those that will be repeated."""
        with self._lock:
            model = self._models.get(name, {})
            return {n: v.last_error for n, v in model.items() if v.last_error is not None}

    def wait_available(self, names: Sequence[str], stop: threading.Event) -> dict[str, str]:
        """Waits until each model has a version that serves, or none that still may.

        Args:
          names: of the models.
          stop: ends the waiting where it is set.

        Returns:
          name -> what came of it, for the models without one: `{name: m version: 1 due to error:
          ...}`.
        """
        with self._lock:
            while any(self._may_still_serve(name) for name in names):
                if stop.is_set() or self._closed:
                    break
                self._lock.wait(0.2)
            return {name: self._report(name) for name in names if not self._serves(name)}

    def _serves(self, name: str) -> bool:
        return any(v.state == State.AVAILABLE for v in self._models.get(name, {}).values())

    def _may_still_serve(self, name: str) -> bool:
        goal = self._goals.get(name, {})
        return not self._serves(name) and any(
            # One that is wanted again while it goes is loaded again when it is gone.
            (v.state == State.UNLOADING and v.number in goal)
            or (v.wanted and v.state in (State.START, State.LOADING))
            for v in self._models.get(name, {}).values()
        )

    def _report(self, name: str) -> str:
        versions = [v for v in self._models.get(name, {}).values() if v.wanted]
        if not versions:
            return f"{{name: {name} without a version}}"
        version = max(versions, key=lambda v: v.number)
        error = version.error or version.last_error
        return f"{{name: {name} version: {version.number}" + (
            f" due to error: {error}}}" if error else "}"
        )

    def close(self, wait_s: float = 1.0) -> None:
        """Unloads everything.

        Args:
          wait_s: for requests in flight; those that take longer are cancelled.
        """
        with self._lock:
            self._closed = True
            self._goals = {}
            for name in self._models:
                self._follow_goal(name)
        self._loaders.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for name in self._models:  # What was being loaded meanwhile.
                self._follow_goal(name)
            everything = [(n, v) for n, model in self._models.items() for v in model.values()]
            self._lock.wait_for(lambda: not any(v.uses for _, v in everything), wait_s)
            for name, version in everything:
                if version.uses:
                    logging.warning("cancelling %d requests of %s", version.uses, name)
                    self._unload_soon(name, version)
        self._unloaders.shutdown(wait=True)
