"""The linear warm-up that schedules begin with."""

from collections.abc import Callable


def warmed_up(step: int, warmup_steps: int, after: Callable[[int], float]) -> float:
    """Return step / warmup_steps during the warm-up, then `after` of the steps since its end."""
    return step / warmup_steps if step < warmup_steps else after(step - warmup_steps)


def validate_ratio(name: str, value: float) -> None:
    """Refuse a ratio outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, but must lie in [0, 1]")
