"""bitsandbytes' 4-bit weights on the pretended device: its class of parameters, over a tensor that the CPU holds.

bitsandbytes makes a weight by `torch.Tensor._make_subclass`, which takes no tensor of another class. Its operators have
kernels for the CPU, which run on what is held; those of CUDA may round and lay out the 4 bits in another way.
"""

from bitsandbytes.nn import Params4bit

from tests.cuda.device import CudaTensor

make = Params4bit.__new__


class CudaParams4bit(CudaTensor, Params4bit):
    """A weight of bitsandbytes on the pretended device, quantised or about to be."""

    def __new__(cls, data, requires_grad=False, **attributes):
        weight = CudaTensor.__new__(cls, data.held)
        vars(weight).update(attributes)
        return weight

    __deepcopy__ = Params4bit.__deepcopy__


def make_on_device(cls, data=None, requires_grad=False, **options):
    """Return what `Params4bit(...)` returns, also for a tensor of the pretended device."""
    weight = make(Params4bit, None if isinstance(data, CudaTensor) else data, requires_grad, **options)
    return CudaParams4bit(data, **vars(weight)) if isinstance(data, CudaTensor) else weight
