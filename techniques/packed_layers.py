"""Layers whose weights are packed (packing.py): linear ones, and an embedding that may also be the head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from machine.layers import Linear
from techniques.packing import GROUP, decode, encode, unpack

# Up to so many rows of x, torch's kernels are faster than to unpack and multiply. A matrix of 1,536 x 576 on
# two cores with AVX512: 1 row 35 us with int4, 33 with int8; 16 rows 420; unpacking takes 280 with int8.
FEW = 8


class Product(torch.autograd.Function):
    """x @ weight.T + bias. The backward pass unpacks the weight again: no unpacked one is kept for it."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize().to(x.dtype), layer.bias_like(x))

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.layer.dequantize().to(dy.dtype), None


def kernel(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x (rows,in) times a matrix in kernel_order(), both in bfloat16 -> (rows,out)."""
    if codes.dtype == torch.int8:
        return torch._weight_int8pack_mm(x, codes, scales)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, GROUP, scales)


class QuantLinear(nn.Module):
    """A packed linear layer, (..., in) -> (..., out): buffers, no parameters. x gets its gradient."""

    def __init__(self, kind: str, weight: Tensor, bias: Tensor | None = None, tensors: dict | None = None):
        """weight: (out, in). tensors: what packing.encode would return, if they were made in another way."""
        super().__init__()
        self.kind, (self.out_features, self.in_features) = kind, weight.shape
        tensors = tensors or encode(kind, weight)
        for name, t in tensors.items():
            self.register_buffer(name, t)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.names = list(tensors)
        rest = self.in_features % 16 if kind == "int8" else self.in_features % 32 or self.out_features % 16
        self.has_kernel = kind != "nf4" and not rest  # for others torch's would read beyond the end
        self.ready = {}  # what kernels read, made when it is first needed

    def dequantize(self) -> Tensor:
        """The float32 weight (out, in) that this layer multiplies by."""
        shape = (self.out_features, self.in_features)
        return decode(self.kind, shape, *(getattr(self, name) for name in self.names))

    def bias_like(self, x: Tensor) -> Tensor | None:
        """The bias in the dtype of x, as FSDP and autocast want it."""
        return None if self.bias is None else self.bias.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= FEW * self.in_features and not torch.is_grad_enabled()
        if few and self.has_kernel and x.device.type == "cpu":
            return self.few_rows(x)
        if few and self.kind == "int8" and x.device.type == "cuda" and x.dtype == torch.bfloat16:
            return self.scaled(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return Product.apply(x, self)

    def few_rows(self, x: Tensor) -> Tensor:
        """The product by torch's kernel. It wants bfloat16: with float32 it takes 5 to 9 times as long."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        y = kernel(rows, *self.kernel_order()).view(*x.shape[:-1], self.out_features).to(x.dtype)
        return y if self.bias is None else y + self.bias_like(y)

    def scaled(self, x: Tensor) -> Tensor:
        """The product with int8's codes, which bfloat16 holds exactly, then the scales: for a GPU.

        A compiled step (generate.py) reads the codes as they are (gpt-fast, 2023); without, they are copied
        in the dtype of x first. torch._weight_int8pack_mm has a CUDA kernel, which is not used: one thread
        there adds up a whole output, so neighbours read addresses that are far apart.
        """
        y = F.linear(x, self.codes.to(x.dtype)) * self.scales.to(x.dtype)
        return y if self.bias is None else y + self.bias_like(y)

    def kernel_order(self) -> list[Tensor]:
        """Codes and scales as the kernel reads them; int4's order depends on the processor: a second copy."""
        if "own" not in self.ready:
            made = [self.codes, self.scales.bfloat16()]
            if self.kind == "int4":
                numbers = (unpack("int4", self.codes, self.in_features) + 8).int()  # 0 to 15
                made[0] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
                made[1] = torch.stack((self.scales.T, self.zeros.T), dim=-1).bfloat16()  # (groups,out,2)
            self.ready["own"] = made
        return self.ready["own"]

    def _apply(self, function, recurse: bool = True) -> nn.Module:
        self.ready = {}  # to another device or dtype
        return super()._apply(function, recurse)

    def _load_from_state_dict(self, saved: dict, prefix: str, *rest) -> None:
        self.ready = {}
        for name in self.names:  # with assign=True, torch takes any dtype
            found, own = saved.get(prefix + name), getattr(self, name)
            if found is not None and found.is_floating_point() != own.is_floating_point():
                kinds = (str(t.dtype).removeprefix("torch.") for t in (found, own))
                rest[-1].append("{}{} is {}; expected {}".format(prefix, name, *kinds))
        super()._load_from_state_dict(saved, prefix, *rest)

    def plain(self) -> nn.Module:
        """An ordinary layer with the dequantized weights."""
        layer = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.dequantize())
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.float())
        return layer


class QuantEmbedding(QuantLinear):
    """An embedding in int8: ids (...) -> rows (..., C). A tied head is this module, called with floats."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return super().forward(x)
        return F.embedding(x, self.codes) * F.embedding(x, self.scales[:, None])  # in the dtype of the scales

    def plain(self) -> nn.Module:
        return nn.Embedding.from_pretrained(self.dequantize(), freeze=False)
