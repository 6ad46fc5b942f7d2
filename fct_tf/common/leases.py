"""Leases: one process at a time works on something in an object store, wherever it runs.

A store has no locks, but it can write a file only if there is none, and only over the version that
one has read. So the process that makes the file `lock.json` has the lease, and writes it anew every
`RENEW_S` seconds for as long as it works. One that was killed stops doing so: after `LEASE_S`
seconds the next one may take over, and on the same machine at once. Machines' clocks have to agree
with the store's to within a minute.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from absl import logging

from fct_tf.common import objects
from fct_tf.common.errors import InputError
from fct_tf.common.files import runs_here

LEASE_S = 120.0
RENEW_S = 20.0


class Lease:
    """A lease that this process has, see `held`. lost: whether others are known to have it."""

    def __init__(self, uri: str, output: str, version: str, token: str):
        self._uri, self._output, self._version, self._token = uri, output, version, token
        self._renewed, self.lost = time.monotonic(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {uri}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuses to go on where another process may have taken over: before what others see.

        Raises:
          InputError: the store could not be reached for too long, or this process was stopped.
        """
        if self.lost or time.monotonic() - self._renewed > LEASE_S:
            raise InputError(
                f"{self._output}: another process may have taken over this work, since this one "
                f"was silent for {LEASE_S:.0f} s ({self._uri}); what is recorded is kept, start "
                "the same command again"
            )

    def end(self) -> None:
        """Lets the next one have it."""
        self._ended.set()
        self._thread.join()
        if not self.lost and self._is_ours():
            with contextlib.suppress(InputError):  # It ends by itself.
                objects.remove(self._uri)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            began = time.monotonic()
            try:
                version = objects.replace(self._uri, _body(self._token), self._version)
            except InputError as error:
                logging.warning("%s", error)
                continue
            if version is None and self._is_ours():  # The answer to an earlier try was lost.
                continue
            if version is None:
                self.lost = True
                return
            self._version, self._renewed = version, began

    def _is_ours(self) -> bool:
        try:
            stored = objects.read_version(self._uri)
        except InputError:
            return True  # Not known; the next try will tell.
        if stored is None or json.loads(stored[0]).get("token") != self._token:
            return False
        self._version = stored[1].version
        return True


@contextlib.contextmanager
def held(uri: str, output: str) -> Iterator[Lease]:
    """Holds a lease for this process alone while the block runs.

    Args:
      uri: of its file in the store.
      output: what is worked on, for messages.

    Raises:
      InputError: another process has it, and is alive as far as can be known; no such store.
    """
    token = secrets.token_hex(8)
    version = None
    while version is None:
        version = objects.create(uri, _body(token))
        if version is not None:
            break
        stored = objects.read_version(uri)
        if stored is None:  # It has just ended.
            continue
        owner, silent = _owner(stored[0]), _age(stored[1])
        if not _is_dead(owner) and silent <= LEASE_S:
            raise InputError(
                f"{output}: another process is at work on this ({owner.get('host', 'unknown')}, "
                f"process {owner.get('process', 'unknown')}; seen {max(silent, 0):.0f} s ago); "
                f"wait until it has ended, or if it was killed until {LEASE_S:.0f} s are over"
            )
        version = objects.replace(uri, _body(token), stored[1].version)
        if version is not None:
            logging.info("%s: goes on after process %s", output, owner.get("process", "unknown"))
    lease = Lease(uri, output, version, token)
    try:
        yield lease
    finally:
        lease.end()


def _body(token: str) -> bytes:
    owner = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "token": token,
        # Of equal content a store may give equal versions.
        "renewed": time.time(),
    }
    return json.dumps(owner).encode()


def _owner(content: bytes) -> dict:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _age(found: objects.Object) -> float:
    return (datetime.datetime.now(datetime.UTC) - found.modified).total_seconds()


def _is_dead(owner: dict) -> bool:
    """Whether it was a process of this machine that is no more."""
    process = owner.get("process")
    here = owner.get("machine") == _machine()
    return here and isinstance(process, int) and not runs_here(process)


def _machine() -> str:
    """Where numbers of processes mean the same: this machine since it was started, and of several
    containers on it the one."""
    parts = [socket.gethostname()]
    for read in (
        lambda: open("/proc/sys/kernel/random/boot_id", encoding="ascii").read().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            parts.append(read())
    return " ".join(parts)
