"""Every installed plugin that can end training: its reason is a sentence, its state survives a resume, ranks agree."""

from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug import hookimpl
from neoplug.registry import Plugins
from neoplug.runs.stopping import Stopping

LOSSES = st.sampled_from([0.0, 0.5, 0.9, 1.0, 1.1, 2.5, 40.0, -1.0])
# What a run shows to a plugin: the loss of a line, or of an evaluation after it.
EVENTS = st.lists(st.tuples(st.booleans(), LOSSES), min_size=4, max_size=90)


def shown(events):
    """Yield the arguments of `should_stop` for each event: (is an evaluation, its value)."""
    line = {"step": 0, "loss": 1.0, "losses": {"forward_kl": 1.0}, "learning_rate": 0.1, "grad_norm": 1.0}
    for is_evaluation, value in events:
        measured = {"step": line["step"], "forward_kl": value, "probes": {}} if is_evaluation else None
        line = line if is_evaluation else {**line, "step": line["step"] + 1, "loss": value}
        yield {"step": line["step"], "metrics": line, "measured": measured}


def answers(make, events, resumed_at=None):
    """Return the answers to each event; the plugin goes on from its stored state at `resumed_at`."""
    plugins, found = Plugins({"stops": {"it": make()}}), []
    for number, arguments in enumerate(shown(events)):
        if number == resumed_at:
            plugins = Plugins({"stops": {"it": resumed(plugins.instances()["it"], make)}})
        before = deepcopy(arguments)
        found.append(plugins.each("should_stop", **arguments)["it"])
        assert arguments == before
    return found


def resumed(plugin, make):
    """Return a new plugin with the state of `plugin`, as a checkpoint stores it; one without state has none."""
    if not hasattr(plugin, "state_dict"):
        return make()
    file = BytesIO()
    torch.save(plugin.state_dict(), file)
    file.seek(0)
    again = make()
    again.load_state_dict(torch.load(file, weights_only=True))
    return again


def test_a_reason_is_a_sentence_and_a_resumed_run_gets_the_same(stop):
    @settings(max_examples=25)
    @given(EVENTS, st.data())
    def holds(events, data):
        whole = answers(stop, events)
        assert all(reason is None or (reason.strip() == reason and reason.isprintable()) for reason in whole)
        assert answers(stop, events, data.draw(st.integers(0, len(events) - 1))) == whole

    holds()


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
