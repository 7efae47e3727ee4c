"""Attention as an operator in compiled graphs: what inductor makes of it, and where it may not be one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from torch import Tensor, nn

import accel
from accel.methods.registry import METHODS
from accel.models.operator import attend_in_graph, number_of
from tests.accel.models.loops import Loop, difference
from tests.accel.models.test_compile import SPARSE, Graphs

NOTHING = dict(dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Says:
    """A processor that gives what it is made to give."""

    def __init__(self, out: Tensor):
        self.out = out

    def attend_eagerly(self, *inputs: object) -> Tensor:
        return self.out


def test_the_output_is_a_tensor_of_its_own_without_gaps() -> None:
    q, v = torch.randn(1, 6, 2, 4), torch.randn(1, 6, 2, 4)
    says = Says(v)
    out = attend_in_graph(q, q, v, None, number_of(says), 0, **NOTHING)
    assert torch.equal(out, v) and out.data_ptr() != v.data_ptr()
    says.out = torch.randn(1, 2, 6, 4).transpose(1, 2)
    out = attend_in_graph(q, q, v, None, number_of(says), 0, **NOTHING)
    assert torch.equal(out, says.out) and out.is_contiguous()
    with torch.device("meta"):
        number = number_of(says)
    assert number.device.type == "cpu"
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(attend_in_graph, (q, q, v, None, number, 0), NOTHING, test_utils=checks)
    del says
    gc.collect()
    with pytest.raises(RuntimeError, match="of an accel that has been disabled; compile the transformer again"):
        attend_in_graph(q, q, v, None, number, 0, **NOTHING)


@pytest.mark.slow
def test_inductor_uses_no_memory_that_is_still_read() -> None:
    """Methods keep clusters, masks and residuals from step to step, and graphs put other things where q and k were."""
    kept = {"svg2": dict(every=2), "svg-ear": dict(every=2), "re-ttention": dict(every=2, correction="both")}
    loop, expected = Loop("wan-2.1"), {}
    options = {name: ({} if name == "full" else SPARSE) | kept.get(name, {}) for name in METHODS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a window of density")
        for name, chosen in options.items():
            with accel.enabled(loop, name, **chosen):
                expected[name] = loop()
        loop.transformer.compile_repeated_blocks(fullgraph=True)
        for name, chosen in options.items():
            with accel.enabled(loop, name, **chosen):
                assert difference(loop(), expected[name]) < 1e-4, name


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # torch's, of a norm
def test_what_no_operator_can_do_breaks_the_graph_and_is_right() -> None:
    loop, graphs = Loop("wan-2.1"), Graphs()
    with accel.enabled(loop, "adaspa", **SPARSE), torch.autocast("cpu", torch.bfloat16):
        eager = loop()
        loop.transformer.compile_repeated_blocks(backend=graphs)
        assert difference(loop(), eager) < 1e-2 and graphs.count > 1
    with accel.enabled(loop, "adaspa", **SPARSE), pytest.warns(UserWarning, match="gradients are asked for"):
        loop()
        output = loop.transformer(**loop.inputs, return_dict=False)[0]
        output.square().sum().backward()
        weight = loop.transformer.get_parameter("blocks.0.attn1.to_q.weight")
        assert isinstance(weight, nn.Parameter) and weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_scores_that_are_skipped_are_skipped_in_graphs() -> None:
    """Perturbed attention guidance: nothing tells an operator of it."""
    skipped = LayerSkipConfig([0], fqn="auto", skip_attention=False, skip_attention_scores=True, skip_ff=False)
    loop, graphs = Loop("qwen-image"), Graphs()
    with accel.enabled(loop, "adaspa", **SPARSE):
        plain = loop()
        _apply_layer_skip_hook(loop.transformer, skipped)
        eager = loop()
        loop.transformer.compile_repeated_blocks(backend=graphs)
        assert difference(loop(), eager) < 1e-6 < 1e-2 < difference(eager, plain)


@pytest.mark.slow
def test_weights_learn_where_attention_is_caught_in_compiled_blocks() -> None:
    loop = Loop("cogvideox-5b")
    loop.transformer.requires_grad_(False)
    weight = loop.transformer.get_parameter("transformer_blocks.0.attn1.to_q.weight").requires_grad_()

    def gradient() -> Tensor:
        weight.grad = None
        loop.transformer(**loop.inputs, return_dict=False)[0].square().sum().backward()
        assert isinstance(weight.grad, Tensor)
        return weight.grad

    with accel.enabled(loop, "adaspa", **SPARSE), pytest.warns(UserWarning, match="gradients are asked for"):
        loop()
        eager = gradient()
        loop.transformer.transformer_blocks[0].compile(backend=Graphs())
        assert torch.allclose(gradient(), eager) and eager.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_a_processor_that_breaks_graphs_stays_outside() -> None:
    """Else torch's functions are compiled one by one, as attention is caught among them."""
    loop, graphs = Loop("mochi"), Graphs()
    with accel.enabled(loop, "adaspa", **SPARSE), torch._dynamo.config.patch(recompile_limit=4):
        eager = loop()
        for block in loop.transformer.transformer_blocks:
            block.compile(backend=graphs)
        assert difference(loop(), eager) < 1e-6 and 1 < graphs.count < 7


@pytest.mark.slow
def test_another_size_is_the_same_graph() -> None:
    loop, graphs = Loop("wan-2.1"), Graphs()
    latents = loop.inputs["hidden_states"]
    with accel.enabled(loop, "adaspa", **SPARSE) as handle, torch._dynamo.config.patch(recompile_limit=4):
        loop.transformer.compile(backend=graphs, dynamic=True, fullgraph=True)
        for width in range(8, 8 + 4 * 7, 4):
            loop(hidden_states=torch.randn(*latents.shape[:-1], width))
            geometry = handle.geometry
            assert geometry is not None and geometry.width == width // 2
