"""What torch.cuda and torch.accelerator say of a machine with one GPU.

Private names that this file uses: `torch.cuda._lazy_init`, `torch._C._set_only_lift_cpu_tensors`, with which
`torch.tensor(..., device="cuda")` is a tensor of the host that is then copied, as on a machine with a GPU.
"""

import threading
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import torch

from tests.cuda import quantised
from tests.cuda.device import CUDA, CudaTensor, Pretended
from tests.cuda.waits import record

MEMORY = 80 * 2**30
PROPERTIES = SimpleNamespace(
    name="a pretended GPU", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132, gcnArchName=""
)
ANSWERS = {
    "torch.cuda.is_available": True,
    "torch.cuda.is_initialized": True,
    "torch.cuda._lazy_init": None,
    "torch.cuda.device_count": 1,
    "torch.cuda.current_device": 0,
    "torch.cuda.set_device": None,
    "torch.cuda.get_device_name": PROPERTIES.name,
    "torch.cuda.get_device_capability": (9, 0),
    "torch.cuda.get_device_properties": PROPERTIES,
    "torch.cuda.is_bf16_supported": True,
    "torch.cuda.is_current_stream_capturing": False,
    "torch.cuda.empty_cache": None,
    "torch.cuda.mem_get_info": (MEMORY, MEMORY),
    "torch.cuda.max_memory_allocated": 0,
    "torch.cuda.memory_allocated": 0,
    "torch.cuda.memory_reserved": 0,
    "torch.cuda.max_memory_reserved": 0,
    "torch.cuda.reset_peak_memory_stats": None,
    "torch.cuda.manual_seed": None,  # draws on the device are those of the CPU's generator
    "torch.cuda.manual_seed_all": None,
    "torch.cuda.get_rng_state_all": [],
    "torch.cuda.set_rng_state": None,
    "torch.accelerator.current_accelerator": CUDA,
    "torch.accelerator.is_available": True,
    "torch.accelerator.device_count": 1,
}

# A tiny step has several blocks of logits, as one of thousands of tokens does.
VALUES = {"neoplug.training.objective.ROWS": 16, "neoplug.training.objective.MOST_ROWS": 40}

attention = torch.nn.functional.scaled_dot_product_attention


def recorded_attention(query, key, value, attn_mask=None, *args, **kwargs):
    """Record whether attention on the device has a dense mask: FlashAttention takes none."""
    if isinstance(query, CudaTensor):
        record("attention", "without a mask" if attn_mask is None else "with a dense mask")
    return attention(query, key, value, attn_mask, *args, **kwargs)


run_thread = threading.Thread.run


def run_pretending(thread):
    """Run a thread that a run starts: each thread has modes of its own."""
    with Pretended():
        run_thread(thread)


def pin_memory(tensor, *_):
    """Return a copy that `record_copy` takes for one in pinned memory."""
    copy = tensor.clone()
    copy.pinned = True
    return copy


def synchronize(*_):
    """Record what waits by its very name."""
    record("wait", "synchronize")


FUNCTIONS = {
    "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
    "torch.cuda.synchronize": synchronize,
    "torch.Tensor.pin_memory": pin_memory,
    "bitsandbytes.nn.Params4bit.__new__": quantised.make_on_device,
    "torch.nn.functional.scaled_dot_product_attention": recorded_attention,
    "threading.Thread.run": run_pretending,
}


def answering(answer):
    """Return a function that returns `answer`, whatever its arguments."""
    return lambda *_, **__: answer


@contextmanager
def pretended_gpu():
    """Pretend, inside the block, that this machine has one GPU."""
    with ExitStack() as stack:
        for target, answer in ANSWERS.items():
            stack.enter_context(mock.patch(target, answering(answer)))
        for target, function in FUNCTIONS.items():
            stack.enter_context(mock.patch(target, function))
        for target, value in VALUES.items():
            stack.enter_context(mock.patch(target, value))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(Pretended())
        yield
