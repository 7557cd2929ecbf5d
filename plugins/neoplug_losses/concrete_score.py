"""Concrete score distillation: the student's log-ratio of every two vocabulary entries is matched to the teacher's.

    sum_ij w1_i w2_j (d_i - d_j)^2 = E1 d^2 + E2 d^2 - 2 E1 d E2 d,  d = z_q - z_p;  0 at p = q, squared nats per token

E1 and E2 are means under the weights w1 and w2: `student`, `teacher` or `uniform`. Student weights emphasise
the student's own mass (mode-seeking), teacher weights the teacher's (mode-covering); uniform ones give twice logit_mse.
Convention: the weights are detached, as in the paper, so with student weights the gradient is not the derivative of the
value. By default both are student weights, as in the paper's main results. `temperature` softens only the weights, so
there is no factor T^2. The gradient of the paper's code is a quarter of this one.
Source: CSD, arXiv 2509.25837.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from neoplug import Softened, hookimpl

Weights = Literal["student", "teacher", "uniform"]


@dataclass(eq=False)
class ConcreteScore(Softened):
    """Weighted squared differences of the log-ratios of all pairs of vocabulary entries, in one pass over these."""

    w1: Weights = "student"
    w2: Weights = "student"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("w1", "w2"):
            if getattr(self, name) not in get_args(Weights):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(get_args(Weights))}"
                )

    @property
    def exempt(self) -> dict[str, str]:
        """Return the properties of losses that do not hold here, each with its reason."""
        if "student" not in (self.w1, self.w2):
            return {}
        return {"finite_differences": "the student's weights are detached (CSD, arXiv 2509.25837)"}

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return E1 d^2 + E2 d^2 - 2 E1 d E2 d, [N]; the last term is 0, since d is centred by E1 first."""
        w1, w2 = self._weights(student, teacher)
        difference = student - teacher
        difference = difference - (w1 * difference).sum(-1, keepdim=True)
        return ((w1 + w2) * difference.square()).sum(-1)

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, [N], and 2 w1 (d - E2 d) + 2 w2 (d - E1 d), [N, V]."""
        w1, w2 = self._weights(student, teacher)
        difference = student - teacher
        difference.sub_((w1 * difference).sum(-1, keepdim=True))
        mean = (w2 * difference).sum(-1, keepdim=True)
        gradient = (w1 + w2) * difference
        value = difference.mul_(gradient).sum(-1)
        return value, gradient.addcmul_(w1.expand_as(gradient), mean, value=-1).mul_(2)

    def _weights(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return w1 and w2, each [N, V], or [1, 1] if uniform; the same tensor where they are equal."""
        log_probabilities = {"student": student, "teacher": teacher}
        weights = {name: self._weight(log_probabilities.get(name), student) for name in {self.w1, self.w2}}
        return weights[self.w1], weights[self.w2]

    def _weight(self, log_probabilities: Tensor | None, like: Tensor) -> Tensor:
        """Return softened probabilities, [N, V], or without log-probabilities the uniform weight 1 / V, [1, 1]."""
        if log_probabilities is None:
            return like.new_full((1, 1), 1 / like.shape[-1])
        return self._soften(log_probabilities.detach()).exp()
