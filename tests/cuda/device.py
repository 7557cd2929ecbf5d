"""Tensors that say that they are on cuda:0 and hold a tensor of the CPU, and CUDA's rules for operators on them.

What it proves: operators get tensors of one device; which operators make the host wait, and which copy between host and
device; the generator of a draw is on the tensor's device. Values are those of the CPU's kernels.
What it cannot prove: that CUDA has a kernel for an operator and a type, how that kernel rounds, and that no stream or
thread reads memory too early. What runs on a GPU without a word may fail here: then this file lacks a rule.

Private names of torch that are used here: `_make_wrapper_subclass`, `_disabled_torch_function_impl`, `no_dispatch`,
`return_and_correct_aliasing`, `_meta_in_tls_dispatch_include` and `_set_meta_in_tls_dispatch_include`; `patches.py`
lists its own. They are the same in torch 2.11 to 2.13.
"""

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.cuda import emulated
from tests.cuda.waits import record

aten = torch.ops.aten
CUDA = torch.device("cuda:0")

# Operators whose result, or the shape of whose result, the host needs.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_cholesky",
    "_linalg_check_errors",
}  # fmt: skip
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
# Operators that are not elementwise and yet take a scalar tensor of the CPU next to tensors of the device.
SCALARS = {"masked_fill", "masked_fill_", "index_put", "index_put_", "_index_put_impl_", "fill_", "index_fill_"}


class CudaTensor(torch.Tensor):
    """A tensor on the pretended device."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=CUDA,
        )  # fmt: skip
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})

    def __tensor_flatten__(self):  # marks it as a wrapper, which `nn.Module.to` replaces as a whole
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return CudaTensor(inner["held"])

    # Methods that read memory without the dispatcher.

    def tolist(self):
        record("wait", "tolist")
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    __array__ = numpy

    def __repr__(self, **_):
        record("wait", "repr")
        return f"{self.held!r}, on cuda:0"

    def __format__(self, form):
        return repr(self) if self.dim() else format(self.item(), form)

    def __reduce_ex__(self, protocol):
        record("wait", "pickle")
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        copied = CudaTensor(self.held.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    # The memory is that of the tensor on the CPU, so tensors that share memory are found as such.

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, tensor):
        torch.Tensor.data.__set__(self, tensor)
        self.held = tensor.held


class Pretended(TorchDispatchMode):
    """Gives tensors that are made on the device, or copied to it, the class above."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return dispatch(function, args, kwargs or {})


def held(value):
    """Return the tensor of the CPU that a tensor of the device holds; any other value as it is."""
    return value.held if isinstance(value, CudaTensor) else value


def dispatch(function, args, kwargs):
    """Call an operator on what its tensors hold, as CUDA's rules have it."""
    name = function.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, CudaTensor) for tensor in tensors)
    device = kwargs.get("device")
    if not on_device and device is None:
        return function(*args, **kwargs)
    goes = on_device if device is None else torch.device(device).type == "cuda"
    if name == "copy_":
        goes = isinstance(args[0], CudaTensor)
        record_copy(args[1], goes, *args[2:], **kwargs)
    elif name == "_to_copy":
        record_copy(args[0], goes, **kwargs)
    else:
        validate_devices(function, name, args, kwargs)
        validate_generator(kwargs, goes)
    if on_device:
        record_wait(name, args, kwargs)
    if name in ("set_", "resize_"):
        return change_memory(function, args)
    if goes and (found := emulated.find(function, name)):
        result = found(*tree_map(held, args), **tree_map(held, kwargs))
    else:
        result = function(*tree_map(held, args), **tree_map(held, on_the_cpu(kwargs)))
    if not goes:
        return args[0] if name == "copy_" else result
    wrapped = tree_map(lambda leaf: CudaTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
    of_library = any(isinstance(tensor, CudaTensor) and type(tensor) is not CudaTensor for tensor in tensors)
    if not on_device or name in ("_to_copy", "lift_fresh") or of_library:
        return args[0] if name == "copy_" else wrapped
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def on_the_cpu(kwargs):
    """Return keyword arguments of an operator with the CPU in place of the device, and without pinned memory."""
    device = torch.device(kwargs.get("device") or "cpu")
    moved = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    return moved | ({"device": torch.device("cpu")} if device.type == "cuda" else {})


def validate_devices(function, name, args, kwargs):
    """Raise torch's error where tensors of host and device meet. Scalar tensors of the host are numbers to CUDA."""
    if name.startswith(("_foreach", "_fused")):  # on lists, element by element
        lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list | tuple)]
        groups = list(zip(*lists, strict=False)) if lists else [args]
    elif name in INDEXING:  # indices may be on the host: CUDA copies them, and waits
        groups = [(args[0], *args[2:])]
    else:
        groups = [(args, kwargs)]
    scalars = name in SCALARS or torch.Tag.pointwise in function.tags or name.startswith("_foreach")
    for group in groups:
        tensors = [leaf for leaf in tree_leaves(group) if isinstance(leaf, torch.Tensor)]
        host = [
            tensor for tensor in tensors if not isinstance(tensor, CudaTensor) and not (scalars and not tensor.dim())
        ]
        if host and len(host) < len(tensors):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"{host[0].device}! ({function})"
            )


def validate_generator(kwargs, goes):
    """Raise torch's error where a generator of the host draws a tensor of the device."""
    generator = kwargs.get("generator")
    if goes and generator is not None and generator.device.type != "cuda":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")


def record_copy(source, goes, non_blocking=False, device=None, **_):
    """Record a copy between host and device, and the wait for it. One from the host's pages needs `non_blocking`."""
    came = isinstance(source, CudaTensor)
    if came == goes or torch.device(device or "cpu").type == "meta":
        return
    direction = "to the host" if came else "to the device"
    record("copy", direction + ", from pinned memory" * (hasattr(source, "pinned")))
    if came or not non_blocking:
        record("wait", f"copy {direction}" + (", which non_blocking does not wait for: a race" * bool(non_blocking)))


def record_wait(name, args, kwargs):
    """Record an operator that makes the host wait."""
    if name in WAITING:
        record("wait", name)
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        record("wait", "repeat_interleave without output_size")
    elif name in INDEXING:
        for index in args[1]:
            if index is not None and not isinstance(index, CudaTensor):
                record("wait", "index on the host")
            elif index is not None and index.dtype in (torch.bool, torch.uint8):
                record("wait", "index by a mask")


def change_memory(function, args):
    """Do what `tensor.set_(storage)` and `tensor.resize_(...)` do; the wrapper then shows the shape of what it holds.

    The wrapper gets the storage of another one, which has no memory, under torch's own key for changes of shapes only.
    """
    tensor, *changes = args
    function(tensor.held, *changes)
    shape, strides, offset = tensor.held.shape, tensor.held.stride(), tensor.held.storage_offset()
    empty = torch.Tensor.untyped_storage(CudaTensor(tensor.held))
    before = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            aten.set_.source_Storage_storage_offset(tensor, empty, offset, shape, strides)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)
    return tensor
