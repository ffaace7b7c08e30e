"""The Triton kernels against plain sums, in Triton's interpreter, which needs no GPU; and where they are used.

Triton interprets only if told so before it is imported. So `TestInterpreted` runs in a process of its own, which the
test after it starts; here it is skipped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.model import mixing
from layerbridge.model.mixing import inverse_rms, layer_scores, weighted_sum

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
ROOT = Path(__file__).parents[2]


def states(tokens, width, num_layers, dtype, seed=0, gap=0):
    """Layers (1, T, E), each inside a larger buffer of NaN, `gap` values from its start: a read too far shows."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(num_layers):
        buffer = torch.full((gap + tokens * width + 300,), float("nan"), dtype=dtype)
        layer = buffer[gap : gap + tokens * width].view(1, tokens, width)
        layers.append(layer.copy_(torch.randn(1, tokens, width, generator=generator)))
    return layers


def stacked(layers):
    return torch.cat(layers).transpose(0, 1).double()


SHAPES = {
    "tokens": st.integers(1, 5),
    "width": st.one_of(st.integers(1, 70), st.sampled_from([128, 130, 300])),
    "num_layers": st.one_of(st.integers(1, 9), st.sampled_from([24, 30])),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    "gap": st.sampled_from([0, 1]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_kernels_hold_in_tritons_interpreter starts")
class TestInterpreted:
    @settings(max_examples=15, deadline=None)
    @given(**SHAPES)
    def test_every_kernel_is_the_plain_sum_in_float32(self, tokens, width, num_layers, dtype, gap, seed):
        from layerbridge.model import kernels

        layers = states(tokens, width, num_layers, dtype, seed, gap)
        states_TLE = stacked(layers)
        direction_E, vectors_TE = torch.randn(width), torch.randn(tokens, width)
        weights_TL = torch.randn(tokens, num_layers)

        def agree(found, rule, *terms):
            expected = torch.einsum(rule, *(term.double() for term in terms))
            size = torch.einsum(rule, *(term.double().abs() for term in terms))
            assert found.dtype == torch.float32
            assert ((found - expected).abs() <= 1e-6 * size).all()

        agree(kernels.dots(layers, direction_E), "tle,e->tl", states_TLE, direction_E)
        agree(kernels.dots_by_token(layers, vectors_TE), "tle,te->tl", states_TLE, vectors_TE)
        agree(kernels.squares(layers, torch.float32), "tle,tle->tl", states_TLE, states_TLE)
        agree(kernels.mix(layers, weights_TL), "tle,tl->te", states_TLE, weights_TL)
        agree(kernels.mix_all_tokens(layers, weights_TL), "tle,tl->e", states_TLE, weights_TL)

    @settings(max_examples=10, deadline=None)
    @given(**SHAPES)
    def test_kernels_and_pytorch_give_the_same_values_and_gradients(self, tokens, width, num_layers, dtype, gap, seed):
        from layerbridge.model import kernels

        torch.manual_seed(seed)
        direction, weights = torch.randn(width), torch.randn(1, tokens, num_layers)
        upstream = {"scores": torch.randn(1, tokens, num_layers), "mix": torch.randn(1, tokens, width)}

        def run(module):
            leaves = [leaf.detach().clone().requires_grad_() for leaf in (direction, weights)]
            layers = [layer.detach().requires_grad_() for layer in states(tokens, width, num_layers, dtype, seed, gap)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mixing, "_kernels_for", lambda layers, dtype: module)
                scores, mixed = layer_scores(layers, leaves[0]), weighted_sum(layers, leaves[1])
                with torch.no_grad():
                    scale = inverse_rms(layers, torch.float32)
                torch.autograd.backward([scores, mixed], [upstream["scores"], upstream["mix"]])
            return [scores, mixed, scale, *(leaf.grad for leaf in leaves)], [layer.grad for layer in layers]

        ours, of_layers = run(kernels)
        theirs, of_layers_too = run(None)
        for found, expected in zip(ours, theirs, strict=True):
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for found, expected in zip(of_layers, of_layers_too, strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, expected)

    def test_gradients_are_those_of_autograd_over_a_stack(self, monkeypatch):
        from layerbridge.model import kernels

        monkeypatch.setattr(mixing, "_kernels_for", lambda layers, dtype: kernels)
        layers = states(4, 37, 6, torch.float32)
        direction, weights = torch.randn(37, requires_grad=True), torch.randn(1, 4, 6, requires_grad=True)
        loss = torch.tanh(layer_scores(layers, direction)).sum() + torch.tanh(weighted_sum(layers, weights)).sum()
        loss.backward()

        exact = [direction.detach().double().requires_grad_(), weights.detach().double().requires_grad_()]
        scores = torch.einsum("tle,e->tl", stacked(layers), exact[0])
        mixed = torch.einsum("tle,tl->te", stacked(layers), exact[1][0])
        (torch.tanh(scores).sum() + torch.tanh(mixed).sum()).backward()
        for found, expected in zip((direction, weights), exact, strict=True):
            torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=1e-5)

    def test_long_sums_over_tokens_and_states_wider_than_a_piece_are_right(self, monkeypatch):
        from layerbridge.model import kernels

        monkeypatch.setattr(kernels, "_PROGRAMS", 2)
        monkeypatch.setattr(kernels, "_MIX_BLOCK", 128)
        layers, weights_TL = states(9, 300, 3, torch.bfloat16), torch.randn(9, 3)
        expected_TE = torch.einsum("tle,tl->te", stacked(layers), weights_TL.double())
        torch.testing.assert_close(kernels.mix(layers, weights_TL).double(), expected_TE, rtol=1e-5, atol=1e-5)
        found_E = kernels.mix_all_tokens(layers, weights_TL).double()
        torch.testing.assert_close(found_E, expected_TE.sum(0), rtol=1e-5, atol=1e-5)

    def test_bfloat16_weights_are_summed_in_float32_and_rounded_once(self):
        from layerbridge.model import kernels

        layers, weights_TL = states(3, 40, 24, torch.bfloat16), torch.randn(3, 24).bfloat16()
        expected_TE = torch.einsum("tle,tl->te", stacked(layers).float(), weights_TL.float())
        found_TE = kernels.mix(layers, weights_TL)
        assert found_TE.dtype == torch.bfloat16
        torch.testing.assert_close(found_TE, expected_TE.bfloat16(), rtol=2**-7, atol=1e-6)

    def test_no_tokens_give_nothing_and_a_zero_gradient(self):
        from layerbridge.model import kernels

        layers = [torch.empty(2, 0, 5) for _ in range(3)]
        assert kernels.dots(layers, torch.ones(5)).shape == (0, 3)
        assert kernels.mix(layers, torch.ones(0, 3)).shape == (0, 5)
        assert torch.equal(kernels.mix_all_tokens(layers, torch.ones(0, 3)), torch.zeros(5))

    def test_a_wrong_number_of_weights_is_never_read(self):
        from layerbridge.model import kernels

        with pytest.raises(AssertionError, match="kernels do not check their bounds"):
            kernels.mix(states(3, 8, 2, torch.float32), torch.ones(4, 2))
        with pytest.raises(AssertionError, match="kernels do not check their bounds"):
            kernels.dots(states(3, 8, 2, torch.float32), torch.ones(7))


@needs_triton
def test_kernels_hold_in_tritons_interpreter():
    """Run the class above."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "TestInterpreted"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_active_torch_device(self): return torch.device("cpu")

class Compiled:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        def compile(*values, **options):
            made.append(self.kernel.warmup(*values, grid=grid, **options).asm["ptx"])
        return compile

driver.set_active(Hopper())
from layerbridge.model import kernels
made = []
kernels._dot, kernels._mix = Compiled(kernels._dot), Compiled(kernels._mix)
layers = [torch.zeros(4, 1024, dtype=torch.bfloat16) for _ in range(6)]
kernels.dots(layers, torch.zeros(1024))
kernels.mix(layers, torch.zeros(4, 6))
for ptx in made:
    print(ptx.count("ld.global.v4.b32"), ptx.count("ld.global.b16"), ptx.count("atom"))
"""


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_kernels_compile_for_a_hopper_gpu_with_16_byte_loads_and_no_atomics(tmp_path):
    """2 warps read 1024 values of 2 bytes: two loads of 16 bytes a layer, whatever else is read."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == 2
    for wide, narrow, atomic in rows:
        assert wide >= 2 * 6
        assert narrow == 0
        assert atomic == 0


class PretendsToBeOnAGpu(torch.Tensor):
    is_cuda = True


@needs_triton
class TestWhichFormRuns:
    def choose(self, monkeypatch, layers, dtype=torch.float32):
        monkeypatch.setattr(mixing, "_triton_works_on", lambda device: True)
        return mixing._kernels_for([layer.as_subclass(PretendsToBeOnAGpu) for layer in layers], dtype)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_contiguous_states_on_a_gpu_are_for_the_kernels(self, monkeypatch, dtype):
        chosen = self.choose(monkeypatch, [torch.zeros(2, 3, 8, dtype=dtype) for _ in range(3)])
        assert chosen.__name__ == "layerbridge.model.kernels"

    @pytest.mark.parametrize(
        "layers",
        [
            pytest.param([torch.zeros(2, 3, 8, dtype=torch.float64)], id="float64 states"),
            pytest.param([torch.zeros(2, 6, 8)[:, ::2], torch.zeros(2, 3, 8)], id="states with gaps"),
            pytest.param([torch.zeros(2, 3, 8), torch.zeros(2, 3, 8).bfloat16()], id="mixed dtypes"),
            pytest.param([torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)], id="mixed shapes"),
            pytest.param([torch.zeros(1, 1, 8193)], id="states too wide"),
        ],
    )
    def test_other_states_are_for_pytorch(self, monkeypatch, layers):
        assert self.choose(monkeypatch, layers) is None

    def test_float64_weights_are_for_pytorch(self, monkeypatch):
        assert self.choose(monkeypatch, [torch.zeros(2, 3, 8)], torch.float64) is None


def test_on_the_cpu_states_are_mixed_by_pytorch_and_triton_is_never_asked(monkeypatch):
    def ask(device):
        raise AssertionError(f"asked about {device}")

    monkeypatch.setattr(mixing, "_triton_works_on", ask)
    layers = [torch.randn(2, 3, 8, requires_grad=True) for _ in range(3)]
    weights, direction = torch.randn(2, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    (layer_scores(layers, direction).sum() + weighted_sum(layers, weights).sum()).backward()
    assert mixing._kernels_for(layers, torch.float32) is None
    assert direction.grad is not None


class TestTritonWorks:
    @pytest.fixture(autouse=True)
    def hopper(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(mixing.shutil, "which", lambda name: name)

    def works(self):
        return mixing._triton_works_on.__wrapped__(torch.device("cuda", 0))

    def test_with_all_it_needs(self):
        assert self.works()

    def test_not_on_a_gpu_before_ampere(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert not self.works()

    def test_not_where_it_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert not self.works()

    def test_not_without_a_c_compiler_and_that_is_said(self, monkeypatch):
        monkeypatch.setattr(mixing.shutil, "which", lambda name: None)
        with pytest.warns(UserWarning, match=r"no C compiler, .* by PyTorch, which is slower. Install gcc, or set CC"):
            assert not self.works()


def test_a_kernel_that_fails_is_not_hidden(monkeypatch):
    class Broken:
        def dots(self, layers, direction):
            raise RuntimeError("illegal memory access")

    monkeypatch.setattr(mixing, "_kernels_for", lambda layers, dtype: Broken())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        layer_scores([torch.zeros(1, 2, 4)], torch.zeros(4))


@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_pytorch_form_is_the_plain_sum_in_float32(tokens, width, num_layers, dtype, gap, seed):
    layers = states(tokens, width, num_layers, dtype, seed, gap)
    direction, weights = torch.randn(width, requires_grad=True), torch.randn(1, tokens, num_layers)
    scores, scale = layer_scores(layers, direction), inverse_rms(layers, torch.float32)
    scores.backward(weights)
    exact = stacked(layers)
    by_token = torch.einsum("tle,tl->te", exact, weights[0].double())
    for found, expected in (
        (scores[0], exact @ direction.detach().double()),
        (weighted_sum(layers, weights)[0], by_token),
        (direction.grad, by_token.sum(0)),
        (scale[0], torch.rsqrt(exact.square().mean(-1) + 1e-6)),
    ):
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=2e-5)
