"""The fused kernel in Triton's interpreter, against the closed forms in float64; and its compiler's answer for a GPU.

The interpreter computes with numpy: how a GPU rounds, and how fast it is, is not tested here.
"""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import nn

from neoplug.registry import Plugins
from neoplug.runs.steps import make_losses
from neoplug.training import fusion
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_losses.skew_forward_kl import SkewForwardKL

ROOT = Path(__file__).parents[2]
ALL = {
    "cross_entropy": CrossEntropy(label_smoothing=0.1), "forward_kl": ForwardKL(), "jsd": JensenShannon(beta=0.3),
    "reverse_kl": ReverseKL(),
}  # fmt: skip
WEIGHTS = [0.5, 0.7, 2.0, 0.1]
MIX = {"cross_entropy": CrossEntropy(), "forward_kl": ForwardKL()}
SOFT = {"cross_entropy": CrossEntropy(), "forward_kl": ForwardKL(2.0), "jsd": JensenShannon(2.0, beta=0.3)}


class ScaledGradient(ForwardKL):
    """A loss whose closed form is not that of its value."""

    def value_and_gradient(self, log_p, log_q):
        value, gradient = super().value_and_gradient(log_p, log_q)
        return value, 1.01 * gradient


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")


def softmax(logits, temperature=1.0):
    """Return log-probabilities in float64 of logits of torch."""
    z = logits.double().numpy() / temperature
    high = z.max(-1, keepdims=True)
    return z - high - np.log(np.exp(z - high).sum(-1, keepdims=True))


def relative(p, log_p, log_m):
    """Return p log(p / m), 0 where p is."""
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_m), 0.0)


def closed_form(plugin, student, teacher, labels):
    """Return a loss [n] and its gradient by the logits [n, V] by the formulas of its documentation, in float64."""
    if isinstance(plugin, CrossEntropy):
        log_q, e = softmax(student), plugin.label_smoothing
        target = np.full(log_q.shape, e / log_q.shape[1])
        target[np.arange(len(log_q)), labels.numpy()] += 1 - e
        with np.errstate(invalid="ignore"):
            return np.where(target > 0, -target * log_q, 0.0).sum(-1), np.exp(log_q) - target
    scale = plugin.temperature
    log_p, log_q = softmax(teacher, scale), softmax(student, scale)
    p, q = np.exp(log_p), np.exp(log_q)
    if isinstance(plugin, ForwardKL):
        value, gradient = relative(p, log_p, log_q).sum(-1), q - p
    elif isinstance(plugin, ReverseKL):
        terms = relative(q, log_q, log_p)
        value, gradient = terms.sum(-1), terms - q * terms.sum(-1, keepdims=True)
    else:
        m = plugin.beta * p + (1 - plugin.beta) * q
        of_q = rel_entr(q, m)
        value = plugin.beta * rel_entr(p, m).sum(-1) + (1 - plugin.beta) * of_q.sum(-1)
        gradient = (1 - plugin.beta) * (of_q - q * of_q.sum(-1, keepdims=True))
    return scale**2 * value, scale * gradient


def logits(rows, vocabulary, seed, size=3.0):
    return size * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def case(plugins, student, teacher):
    labels = torch.arange(len(student)) * 7919 % student.shape[1]
    return plugins, WEIGHTS[: len(plugins)], student, teacher, labels


def certain(rows=3, vocabulary=300):
    """Return logits of models that are certain of a token each, the same one in the first row."""
    student, teacher = torch.full((rows, vocabulary), -1e4), torch.full((rows, vocabulary), -1e4)
    student[:, 7], teacher[0, 7], teacher[1:, 9] = 1e4, 1e4, 1e4
    return student, teacher


def masked(both):
    """Return logits of which a part is -inf: of both models, or of the teacher's alone."""
    student, teacher = logits(2, 5000, 1), logits(2, 5000, 2)
    teacher[:, 4000:] = -torch.inf
    teacher[1, :4096] = -torch.inf  # a whole part of the row, before all others
    teacher[1, 4500] = 1.0
    if both:
        student[teacher == -torch.inf] = -torch.inf
    return student, teacher


def likely(plugins, student, teacher):
    """Return a case whose labels are the teacher's most probable tokens, which are not masked."""
    return (*case(plugins, student, teacher)[:-1], teacher.argmax(-1))


TILES = {
    **{
        f"V = {size:,}": case(ALL, logits(2, size, 1), logits(2, size, 2)) for size in (49_152, 128_256, 262_144)
    },
    **{f"V = {size}": case(ALL, logits(3, size, 1), logits(3, size, 2)) for size in (2, 7, 4095, 4096, 4097)},
    "bfloat16": case(ALL, logits(2, 5000, 1).bfloat16(), logits(2, 5000, 2).bfloat16()),
    "the mix of LLM-Neo": case(MIX, logits(3, 5000, 1), logits(3, 5000, 2)),
    "temperature": case(SOFT, logits(3, 5000, 1), logits(3, 5000, 2)),
    "without a teacher": case({"cross_entropy": CrossEntropy()}, logits(3, 5000, 1), None),
    "columns first": case(ALL, logits(300, 3, 1).t(), logits(300, 3, 2).t()),
    "certain": case(ALL, *certain()),
    "thousands": case(ALL, logits(3, 5000, 1, 1e3), logits(3, 5000, 2, 1e3)),
    "equal": case(ALL, torch.full((2, 300), 5.0), torch.full((2, 300), -5.0)),
    "the same": case(ALL, logits(2, 300, 1), logits(2, 300, 1)),
    "masked in both": likely(MIX | {"jsd": JensenShannon(), "reverse_kl": ReverseKL()}, *masked(both=True)),
    "masked in the teacher's": likely(MIX | {"jsd": JensenShannon()}, *masked(both=False)),
}  # fmt: skip


def step_case():
    """Return an objective over several blocks whose head is trained."""
    torch.manual_seed(3)
    head, teacher = nn.Linear(8, 40, bias=False), nn.Linear(8, 40, bias=False).requires_grad_(False)
    return ALL, WEIGHTS, 3 * torch.randn(23, 8), head, 3 * torch.randn(23, 8), teacher, torch.arange(23)


DISAGREEMENTS = {
    "agrees": (ALL, WEIGHTS, ALL, 5000),
    "scaled": ({"forward_kl": ScaledGradient()}, [1.0], {"forward_kl": ForwardKL()}, 5000),
    "wrong": (ALL, WEIGHTS, ALL | {"jsd": JensenShannon(beta=0.31)}, 5000),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what the kernel computes for all cases, in one process."""
    folder = tmp_path_factory.mktemp("interpreted")
    cases = {name: ("tile", arguments) for name, arguments in TILES.items()}
    cases |= {name: ("disagreement", arguments) for name, arguments in DISAGREEMENTS.items()}
    torch.save(cases | {"step": ("step", step_case())}, folder / "cases.pt")
    command = [sys.executable, "-m", "tests.training.interpreted", folder / "cases.pt", folder / "found.pt"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "found.pt", weights_only=False)


@needs_triton
@pytest.mark.parametrize("name", TILES)
def test_losses_and_gradient_are_those_of_the_closed_forms(found, name):
    plugins, weights, student, teacher, labels = TILES[name]
    values, gradient = (tensor.double().numpy() for tensor in found[name])
    assert values.shape == (len(plugins), len(student))
    total = 0.0
    for value, weight, plugin in zip(values, weights, plugins.values(), strict=True):
        expected, by_logits = closed_form(plugin, student, teacher, labels)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)
        total = total + weight * by_logits
    # The gradient has the type of the logits. Of bfloat16's 8 bits the interpreter cuts off what it does not round.
    rounding = 2.0**-7 if student.dtype == torch.bfloat16 else 2e-5
    # The gradient of a divergence is a difference of numbers as large as its value.
    cancelled = 1e-7 * np.abs(values * np.array(weights)[:, None]).max()
    atol = 1e-6 + rounding * np.abs(total).max() / 10 + cancelled
    np.testing.assert_allclose(gradient, total, rtol=rounding, atol=atol)


@needs_triton
def test_the_objective_is_that_of_whole_logits_in_float64(found, monkeypatch):
    plugins, weights, hidden, head, states, teacher, labels = step_case()
    total, values, by_hidden, by_head = found["step"]
    wide, weight = hidden.double(), head.weight.detach().double()
    theirs, gradient, expected = states.double() @ teacher.weight.double().t(), 0.0, []
    for factor, plugin in zip(weights, plugins.values(), strict=True):
        value, by_logits = closed_form(plugin, wide @ weight.t(), theirs, labels)
        expected.append(torch.from_numpy(value))
        gradient = gradient + factor * torch.from_numpy(by_logits)
    expected = torch.stack(expected)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.double(), (torch.tensor(weights).double() @ expected).sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(by_hidden.double(), gradient @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_head.double(), gradient.t() @ wide, rtol=1e-4, atol=1e-3)


@needs_triton
def test_the_proof_at_start_finds_a_formula_that_is_not_the_loss(found):
    assert found["agrees"] is None
    assert "the kernel's losses differ from the hooks by" in found["wrong"]
    assert "the kernel's gradient differs from the hooks by" in found["scaled"]


PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neoplug.training import fused_tile
from neoplug.training.formula import Formula

formulas = [Formula(teacher=1), Formula(student=1, share=1), Formula(0.3, 0.7, 0.3), Formula(label=0.9, uniform=0.1)]
names = fused_tile._kernel.arg_names
constants = {"student_column": 1, "teacher_column": 1, "TERMS": fused_tile.terms(formulas), "COMPARES": True}
constants |= {"VOCABULARY": 128256, "MIXES": True, "TEMPERATURE": 2.0, "COLUMNS": fused_tile.COLUMNS, "LOSSES": 4}
pointers = {"labels": "*i64"} | {name: "*fp32" for name in ("student", "teacher", "weights", "values")}
types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
source = ASTSource(fused_tile._kernel, types, {(names.index(name),): value for name, value in constants.items()})
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": fused_tile.WARPS})
assert ".local" not in made.asm["ptx"], "registers do not suffice"
assert made.asm["cubin"]
"""


@needs_triton
def test_it_compiles_for_a_gpu(tmp_path):
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PTX], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("plugins", "reason"),
    [
        ({"forward_kl": ForwardKL(omit_teacher_entropy=True)}, "forward_kl has no formula"),
        ({"forward_kl": ForwardKL(2.0), "skew": SkewForwardKL()}, "several temperatures"),
        (MIX, "Triton is not installed"),
    ],
)
def test_tiles_are_used_where_the_kernel_cannot_be_and_the_log_says_why(plugins, reason, monkeypatch, caplog):
    monkeypatch.setattr(fusion, "find_spec", lambda name: None)
    losses = make_losses(Plugins({"loss": plugins}))
    with caplog.at_level(logging.INFO, "neoplug.training.fusion"):
        assert fusion.fuse(losses, plugins, 40, torch.device("cuda")) == losses
    assert "tile by tile, since " in caplog.text
    assert reason in caplog.text


def test_a_cpu_has_tiles():
    losses = make_losses(Plugins({"loss": MIX}))
    assert fusion.fuse(losses, MIX, 40, torch.device("cpu")) == losses
