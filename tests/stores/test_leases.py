"""Two drivers at one output in a bucket: one works, the other is refused or goes on after it."""

import json
import threading
import time

import numpy as np
import pytest

from fct_tf.common import leases, objects
from fct_tf.common.errors import InputError
from fct_tf.gallery import job, table
from tests.stores.test_galleries import Killed, column, doubled
from tests.upgrade.test_upgrade import make_gallery


@pytest.fixture
def uri(place):
    return f"{place}/lock.json"


def owner(uri, **changed):
    """Puts a lease of another process there."""
    known = json.loads(leases._body("t")) | changed
    objects.write(uri, json.dumps(known).encode())


def test_one_at_a_time(uri):
    with leases.held(uri, "it"):
        told = r"it: another process is at work.*process \d+; seen \d+ s ago\).* 120 s are over"
        with pytest.raises(InputError, match=told), leases.held(uri, "it"):
            raise AssertionError
    assert objects.about(uri) is None
    with leases.held(uri, "it"):
        pass


def test_many_at_once(uri):
    """Of threads that begin together exactly one has it at a time."""
    inside, most, had = [], [], []

    def work():
        try:
            with leases.held(uri, "it"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.05)
                inside.pop()
                had.append(1)
        except InputError:
            pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and had


def test_a_dead_process_of_this_machine_holds_nothing(uri, ended):
    owner(uri, process=ended)
    with leases.held(uri, "it") as lease:
        lease.check()


@pytest.fixture(scope="module")
def ended():
    """The number of a process that is no more."""
    import subprocess

    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("elsewhere", [{"machine": "another"}, {"process": "?"}, {"machine": None}])
def test_one_elsewhere_holds_it_for_so_long(uri, ended, monkeypatch, elsewhere):
    owner(uri, **{"process": ended, **elsewhere})
    with pytest.raises(InputError, match="another process is at work"), leases.held(uri, "it"):
        pass
    monkeypatch.setattr(leases, "LEASE_S", -1.0)
    with leases.held(uri, "it"):
        monkeypatch.undo()
        assert json.loads(objects.read(uri))["token"] != "t"


def test_a_file_of_something_else_is_waited_for_too(uri):
    objects.write(uri, b"[]")
    with pytest.raises(InputError, match="unknown, process unknown"), leases.held(uri, "it"):
        pass


def test_who_is_at_work_renews_it(uri, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    with leases.held(uri, "it") as lease:
        versions = set()
        while len(versions) < 3:
            versions.add(objects.about(uri).version)
        lease.check()


def test_who_has_lost_it_does_not_go_on(place, monkeypatch):
    """Another has taken over while this one was stopped: it records and commits nothing more."""
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance", rows_per_file=30))
    lock = f"{gallery.path}.jobs/x/lock.json"
    made = []

    def taken(rows):
        made.append(1)
        if len(made) == 2:
            owner(lock, token="another", machine="another")
            time.sleep(0.3)
        return doubled(rows)

    with pytest.raises(InputError, match="another process may have taken over this work"):
        table.add_column(gallery, column(), taken, ["embedding_old"])
    assert json.loads(objects.read(lock))["token"] == "another"
    assert table.open_gallery(gallery.path).version == gallery.version
    recorded = objects.listed(f"{gallery.path}.jobs/x")
    assert [*recorded] == ["fragment-0.json", "job.json", "lock.json"]


def test_a_second_driver_is_refused_and_goes_on_when_the_first_is_dead(place, ended):
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance", rows_per_file=30))
    lock, told = f"{gallery.path}.jobs/x/lock.json", []

    def second(rows):
        if not told:
            with pytest.raises(InputError, match="g.lance: another process is at work") as raised:
                table.add_column(gallery, column(), doubled, ["embedding_old"])
            told.append(str(raised.value))
        elif len(told) == 1:
            told.append(objects.read(lock))
            raise Killed
        return doubled(rows)

    with pytest.raises(Killed):
        table.add_column(gallery, column(), second, ["embedding_old"])
    # As it is left by SIGKILL: the lease too.
    objects.write(lock, json.dumps(json.loads(told[1]) | {"process": ended}).encode())
    rest = []

    def counted(rows):
        rest.append(len(rows))
        return doubled(rows)

    made = table.add_column(gallery, column(), counted, ["embedding_old"])
    assert sum(rest) == 71 and len(np.unique(made.read([]).ids)) == 101
    assert not job.unfinished(gallery.path, "x") and objects.about(lock) is None


@pytest.mark.parametrize("what", ["create", "apart", "beside"])
def test_drivers_without_a_lease_make_no_row_twice(place, monkeypatch, what):
    """Lance's own commit is whole: one wins, or the second makes the same."""
    gallery = table.open_gallery(make_gallery(f"{place}/g.lance"))
    barrier, results = threading.Barrier(2), []
    free = leases.held

    def apart_from_each_other(uri, output):
        return free(f"{uri}.{threading.get_ident()}", output)

    monkeypatch.setattr(leases, "held", apart_from_each_other)

    def met(rows):
        if barrier:
            barrier.wait(20)
        return doubled(rows)

    def work():
        try:
            if what == "create":
                barrier.wait(20)
                make_gallery(f"{place}/own.lance")
            else:
                output = f"{place}/own.lance" if what == "apart" else ""
                settings = {"output": output, "job_dir": f"{place}/jobs{threading.get_ident()}"}
                table.add_column(gallery, column(), met, ["embedding_old"], **settings)
            results.append("made")
        except InputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = table.open_gallery(gallery.path if what == "beside" else f"{place}/own.lance")
    assert len(made.read([]).ids) == made.num_rows == 101
    # Of two that make a gallery the second may replace what is equal.
    assert "made" in results
