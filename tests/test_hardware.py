"""What a GPU does, on a CPU: recorded compilation (graphs replaced by calls), the choice of attention."""

import contextlib
import functools

import pytest
import torch
from torch.nn.attention import SDPBackend

from machine import hardware
from model import GPT, GPTConfig, summed_nats

CPU = torch.device("cpu")


@pytest.fixture
def small():
    """A model, its loss, and batches of two shapes."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=9, block_size=8, n_layer=1, n_head=2, n_embd=16))

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return summed_nats(model(x), y)

    return model, loss, [torch.randint(9, (2, B, 8)) for B in (4, 2)]


def gradients(model, loss, batch) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss(*batch).backward()
    return [p.grad for p in model.parameters()]


def test_a_recorded_loss_is_the_loss_and_other_shapes_are_not_recorded(small, monkeypatch):
    model, loss, batches = small
    called = []

    def compile(function, mode=None):  # CUDA graphs need a GPU: here they are calls
        def compiled(*batch):
            called.append(mode)
            return function(*batch)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: called.append("begins"))
    fast = hardware.try_compile(loss, model, batches[0], contextlib.nullcontext(), one_step=True)
    assert called == [None]  # a CPU has no launches to save
    called.clear()
    monkeypatch.setattr(hardware, "is_small", lambda model, n_tokens: n_tokens == 32)
    assert hardware.try_compile(loss, model, batches[0], contextlib.nullcontext()) is not loss
    assert called == [None]  # several micro-steps an update
    called.clear()
    fast = hardware.try_compile(loss, model, batches[0], contextlib.nullcontext(), one_step=True)
    assert called == ["begins", "reduce-overhead"] * 3  # it compiles, records, replays
    for batch, mode in zip(batches, ("reduce-overhead", None), strict=True):
        plain = gradients(model, loss, batch)
        assert all(map(torch.equal, gradients(model, fast, batch), plain))
        assert called[-1] == mode


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when its compiler is imported
def test_a_loss_compiled_with_graphs_is_the_loss_on_a_cpu(small, monkeypatch):
    model, loss, batches = small
    monkeypatch.setattr(hardware, "is_small", lambda model, n_tokens: True)
    fast = hardware.try_compile(loss, model, batches[0], contextlib.nullcontext(), one_step=True)
    assert fast is not loss
    plain = gradients(model, loss, batches[0])
    torch.testing.assert_close(gradients(model, fast, batches[0]), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fastest, slowest", [("cuDNN", "flash"), ("flash", "cuDNN")])
def test_the_faster_attention_is_taken_for_the_loss_alone(small, monkeypatch, capsys, fastest, slowest):
    model, loss, batches = small
    kernels = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    orders, times = [], {fastest: 0.001, slowest: 0.002}

    @contextlib.contextmanager
    def sdpa_kernel(order, set_priority=False):
        orders.append(order)
        yield

    def attention_seconds(*rest):
        return times[next(name for name, kernel in kernels.items() if kernel == orders[-1])]

    monkeypatch.setattr(hardware, "sdpa_kernel", sdpa_kernel)
    monkeypatch.setattr(hardware, "attention_seconds", attention_seconds)
    gpu, autocast = torch.device("cuda"), torch.autocast("cpu", torch.bfloat16)
    fast = hardware.fastest_attention(loss, model, batches[0][0].shape, autocast, gpu)
    assert f"attention: {fastest} (" in capsys.readouterr().out
    orders.clear()
    for batch in batches:
        assert torch.equal(fast(*batch), loss(*batch))
    assert len(orders) == 2  # the order holds while the loss is computed, and then torch's own again
    assert orders[0][:2] == [kernels[fastest], kernels[slowest]] and orders[0][3] == SDPBackend.MATH
    for device, precision in ((CPU, torch.bfloat16), (gpu, torch.float32)):
        context = contextlib.nullcontext() if precision == torch.float32 else autocast
        assert hardware.fastest_attention(loss, model, batches[0][0].shape, context, device) is loss


def test_attention_is_timed_and_a_kernel_that_is_not_there_is_no_choice(small, monkeypatch):
    model, loss, batches = small
    seconds = functools.partial(hardware.attention_seconds, model.config, torch.Size((1, 4)), torch.bfloat16)
    assert 0 < seconds(CPU) < 1
    monkeypatch.setattr(hardware, "attention_seconds", lambda *rest: seconds(CPU))
    autocast = torch.autocast("cpu", torch.bfloat16)
    gpu = torch.device("cuda")
    assert (
        hardware.fastest_attention(loss, model, batches[0][0].shape, autocast, gpu) is loss
    )  # no cuDNN here


def test_torch_takes_the_order_of_attention_as_a_decorator():
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    before = torch._C._get_sdp_priority_order()
    orders = []
    ordered = hardware.sdpa_kernel(backends, set_priority=True)(
        lambda: orders.append(torch._C._get_sdp_priority_order()[:2])
    )
    ordered()
    ordered()
    assert orders == [[int(SDPBackend.FLASH_ATTENTION), int(SDPBackend.MATH)]] * 2
    assert torch._C._get_sdp_priority_order() == before
