"""The numbers of a run that a device must not change."""


def computed(run):
    """Return the losses of each step and the metrics on held-out text, by their paths."""
    losses = {f"step {line['step']}": {"loss": line["loss"], "losses": line["losses"]} for line in run.lines}
    held_out = {key: run.result.get(key) for key in ("before", "after", "teacher", "evaluations", "weights")}
    return dict(numbers(losses | held_out))


def numbers(value, path=""):
    """Yield all floating-point numbers in a value of JSON, with their paths."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(part, f"{path}.{key}")
    elif isinstance(value, float):
        yield path, value
