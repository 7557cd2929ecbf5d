"""A batch moves between devices as a whole; the host waits only for what it is about to read."""

import torch
from torch.overrides import TorchFunctionMode

from neoplug.data.batch import Batch, TeacherText


class Copies(TorchFunctionMode):
    """Notes whether each `Tensor.to` would let the host run on."""

    def __init__(self):
        super().__init__()
        self.non_blocking = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.non_blocking.append(kwargs["non_blocking"])
        return function(*args, **(kwargs or {}))


def test_only_a_copy_to_the_cpu_is_waited_for():
    numbers = torch.arange(4)
    batch = Batch(numbers, [4], numbers, numbers, numbers, TeacherText(numbers, [4], numbers))
    for device, runs_on in (("cpu", False), ("meta", True)):
        with Copies() as copies:
            moved = batch.to(device)
        assert copies.non_blocking == [runs_on] * 6
        assert moved.input_ids.device.type == moved.teacher.places.device.type == device
