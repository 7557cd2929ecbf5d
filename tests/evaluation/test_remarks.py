"""What a finished run's remarks say, and when they say nothing."""

import pytest

from neoplug import AdapterTraits
from neoplug.evaluation.remarks import remarks


def measured(cross_entropy, forward_kl, cosine=0.5):
    return {"cross_entropy": cross_entropy, "forward_kl": forward_kl, "kd_ce_cosine": cosine}


@pytest.mark.parametrize(
    ("before", "after", "teacher", "said"),
    [
        (measured(3.0, 1.0), measured(2.9, 0.5), 2.0, None),
        (measured(3.0, 1.0), measured(2.9, 0.5), 3.1, "no better than the student was"),
        (measured(3.0, 1.0), measured(1.9, 0.5), 2.0, "better than its teacher"),
        (measured(3.0, 1.0), measured(3.2, 0.5), 2.0, "away from the text"),
        (measured(3.0, 1.0), measured(2.9, 1.5), 2.0, "away from its teacher"),
        (measured(3.0, 1.0), measured(3.1, 1.5), 2.0, "did harm"),
        (measured(3.0, 1.0), measured(2.9, 0.5, -0.2), 2.0, "cosine -0.20"),
        (measured(3.0, 0.0231), measured(2.9, 0.0234), 2.0, None),  # what is shown is the same
    ],
)
def test_what_is_said_of_a_run(before, after, teacher, said):
    found = remarks({"before": before, "after": after, "teacher": {"cross_entropy": teacher}})
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_nothing_is_said_without_a_teacher():
    assert remarks({"before": {"cross_entropy": 3.0}, "after": {"cross_entropy": 4.0}}) == []


def test_an_adapter_that_mixes_documents_is_named():
    class Mixing:
        traits = AdapterTraits(mixes_documents="it averages over the batch")

    (found,) = remarks({}, adapters={"plain": object(), "mixing": Mixing()})
    assert "`mixing`" in found
    assert "it averages over the batch" in found
