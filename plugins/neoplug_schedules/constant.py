"""One learning rate from the first step to the last."""

from dataclasses import dataclass

from neoplug import hookimpl


@dataclass(eq=False)
class Constant:
    """The same rate at all steps, without a warm-up."""

    @hookimpl
    def rate(self) -> float:
        """Return 1."""
        return 1.0
