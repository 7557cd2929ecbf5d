"""A recipe with `teacher.cache` is refused where a plugin reads more of the teacher than the kind stores."""

from pathlib import Path

import pytest

from neoplug import recipe
from neoplug.errors import RecipeError

RECIPE = """\
student: {{model: hub/student}}
teacher: {{model: hub/teacher, cache: {{{cache}}}}}
data: {{source: hub/data}}
adapter: {{lora: {{}}}}
loss: {{{loss}}}
token_weights: {{{weights}}}
probes: {{{probes}}}
"""


def load(folder: Path, cache: str, loss: str, weights: str = "", probes: str = "") -> list[str]:
    """Return the recipe's mistakes, as printed; none where it loads."""
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(cache=cache, loss=loss, weights=weights, probes=probes))
    try:
        recipe.load(file)
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


LINEAR = ["forward_kl: {}", "cross_entropy: {}"]
BUCKETS = [
    *LINEAR,
    "reverse_kl: {}",
    "jeffreys: {}",
    "jsd: {}",
    "hellinger: {}",
    "total_variation: {}",
    "alpha_beta: {}",
]
FULL = [
    *("forward_kl: {temperature: 2.0}", "reverse_kl: {temperature: 0.5}", "skew_forward_kl: {}", "skew_reverse_kl: {}"),
    *("taid: {}", "decoupled_kl: {}", "adaptive_kl: {}", "listwise: {}", "pairwise: {}", "logit_mse: {}", "todi: {}"),
]


@pytest.mark.parametrize("loss", [*BUCKETS, *FULL])
def test_each_kind_serves_what_it_stores(tmp_path: Path, loss: str) -> None:
    served = {
        "states: {}": True,
        "top_k: {k: 64}": loss in BUCKETS,
        "sampled: {entries: 16}": loss in LINEAR,
        "sampled: {bytes: 40}": loss in LINEAR,
    }
    assert {cache: not load(tmp_path, cache, loss) for cache in served} == served


def test_a_refusal_names_the_nearest_that_works(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, "sampled: {}", "reverse_kl: {}")
    assert "recipe.yaml:5" in problem
    assert "`reverse_kl` reads the teacher's most probable tokens" in problem
    assert "`teacher.cache: {states: {}}` or `teacher.cache: {top_k: {}}`" in problem
    (problem,) = load(tmp_path, "sampled: {}", "forward_kl: {temperature: 2.0}")
    assert "temperature 1" in problem


def test_token_weights_read_the_entropy_but_not_the_distribution(tmp_path: Path) -> None:
    assert not load(tmp_path, "sampled: {}", "forward_kl: {}", "teacher_entropy: {}, position: {}")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom neoplug import hookimpl\n\n\n@dataclass(eq=False)\nclass Mine:\n"
        "    @hookimpl\n    def token_weight(self, teacher):\n        return teacher.amax(-1).exp()\n"
    )
    (problem,) = load(tmp_path, "top_k: {}", "forward_kl: {}", "./mine.py:Mine: {}")
    assert "the token weight `./mine.py:Mine` reads the teacher's whole distribution" in problem
    assert not load(tmp_path, "states: {}", "forward_kl: {}", "./mine.py:Mine: {}")


def test_a_probe_that_compares_with_the_teacher_is_refused_with_any_cache(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom neoplug import hookimpl\n\n\n@dataclass(eq=False)\nclass Mine:\n"
        "    @hookimpl\n    def on_evaluate(self, model, teacher):\n        return {}\n"
    )
    (problem,) = load(tmp_path, "states: {}", "forward_kl: {}", probes="./mine.py:Mine: {}")
    assert "compares the student with the teacher" in problem
    assert not load(tmp_path, "", "forward_kl: {}", probes="./mine.py:Mine: {}")


def test_there_is_one_kind(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, "states: {}, top_k: {}", "forward_kl: {}")
    assert "two" in problem


KIND = """
from dataclasses import dataclass
from neoplug import StatesSignal, hookimpl

@dataclass(eq=False)
class Kind:
    serves = SERVES

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states}
"""
DECODES = """
    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(stored[0]["states"], head)
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (KIND.replace("SERVES", "'full'"), "Kind implements `encode_teacher`, but not `decode_teacher`"),
        (KIND.replace("SERVES", "'all'") + DECODES, "`./kind.py:Kind` serves 'all', and a kind of cache serves linear"),
    ],
)
def test_a_kind_that_cannot_be_read_is_refused(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "kind.py").write_text(source)
    (problem,) = load(tmp_path, "./kind.py:Kind: {}", "forward_kl: {}")
    assert words in problem
    (tmp_path / "kind.py").write_text(KIND.replace("SERVES", "'full'") + DECODES)
    assert not load(tmp_path, "./kind.py:Kind: {}", "forward_kl: {}")
