"""Every property of plugins that can end training holds for every installed one, and ranks agree."""

from dataclasses import dataclass
from threading import Barrier, Thread

import pytest

from neoplug import hookimpl
from neoplug.registry import Plugins
from neoplug.runs.stopping import Stopping
from neoplug.testing import STOP


@pytest.mark.parametrize("name", STOP.properties)
def test_a_property_of_stops(name, stop):
    STOP.properties[name](stop())


@dataclass(eq=False)
class EndsAt:
    """Ends training at a step: of the plugins of several ranks, each has its own step."""

    at: int

    @hookimpl
    def should_stop(self, step):
        return f"step {step}" if step >= self.at else None


def on_ranks(plugins, losses):
    """Return for each rank the reasons after each line and evaluation; ranks have these plugins and these losses."""
    barrier, offered, found = Barrier(len(plugins)), {}, {}

    def run(rank):
        def gather(values):
            offered[rank] = values
            barrier.wait(30)
            together = [value for number in range(len(plugins)) for value in offered[number]]
            barrier.wait(30)
            return together

        stopping = Stopping(Plugins({"stops": {"it": plugins[rank]}}), gather)
        found[rank] = []
        for step, loss in enumerate(losses[rank], 1):
            stopping.add([{"step": step, "loss": loss}])
            measured = {"step": step, "forward_kl": loss, "probes": {}}
            found[rank] += [stopping.after_lines(), stopping.after_evaluation(measured)]

    threads = [Thread(target=run, args=(rank,)) for rank in range(len(plugins))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(plugins))]


@pytest.mark.parametrize(("steps", "expected"), [([9, 2, 9], "it: step 2"), ([4, 3, 1], "it: step 1"), ([9] * 3, None)])
def test_a_reason_of_one_rank_ends_all_at_the_same_step(steps, expected):
    first, *others = on_ranks([EndsAt(step) for step in steps], [[1.0] * 4] * 3)
    assert all(other == first for other in others)
    assert next(filter(None, first), None) == expected


def test_ranks_agree_also_where_only_one_has_a_reason(stop):
    steady, spike = [1.0] * 60, [1.0] * 55 + [50.0] * 5
    first, second = on_ranks([stop(), stop()], [steady, spike])
    assert first == second
