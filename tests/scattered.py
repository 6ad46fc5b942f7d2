"""An engine that does to units what a cluster may, in this process and in no time."""

import pickle
import random

import cloudpickle


def scattered(make, units, tick, name):
    """Every unit twice, by two workers that know only what was pickled, in an order of their own.

    What the first has made is lost: only the second attempt counts, as far as rows are told too.
    """
    if not units:
        return
    assert name
    pickled = cloudpickle.dumps(make)
    lost, kept = pickle.loads(pickled), pickle.loads(pickled)
    for place in random.Random(len(units)).sample(range(len(units)), len(units)):
        unit = pickle.loads(cloudpickle.dumps(units[place]))
        lost(unit, lambda count: None)
        told: list[int] = []
        made = kept(unit, told.append)
        tick(sum(told))
        yield units[place], pickle.loads(cloudpickle.dumps(made))


class Stopped(Exception):
    """What ends an engine early here."""


def stopping(engine, after):
    """An engine that is killed after so many units."""

    def run(make, units, tick, name):
        for done, one in enumerate(engine(make, units, tick, name)):
            if done == after:
                raise Stopped
            yield one

    return run
