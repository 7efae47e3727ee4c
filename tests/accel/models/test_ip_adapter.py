"""An IP-Adapter's processors have weights and a scale of their own, which stay what they are under ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor

import accel
from tests.accel.models.loops import Loop, difference, processors

IMAGE = {"ip_hidden_states": [torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))]}


def adapted() -> Loop:
    """Return a tiny Flux whose block of two streams has an IP-Adapter."""
    loop = Loop("flux")
    torch.manual_seed(0)
    loop.transformer.transformer_blocks[0].attn.set_processor(FluxIPAdapterAttnProcessor(32, 32, (4,)))
    return loop


def set_scale(transformer: Any, scale: float) -> None:
    """Do what `set_ip_adapter_scale` does."""
    for processor in transformer.attn_processors.values():
        processor.scale = [scale]


def test_attention_with_an_ip_adapter_is_the_stock_one_and_obeys_its_scale() -> None:
    loop = adapted()
    stock = loop(joint_attention_kwargs=IMAGE)
    set_scale(loop.transformer, 0.3)
    scaled = loop(joint_attention_kwargs=IMAGE)
    assert difference(scaled, stock) > 1e-4, "picture and scale matter"
    set_scale(loop.transformer, 1.0)
    with accel.enabled(loop, "full", block=16):
        assert difference(loop(joint_attention_kwargs=IMAGE), stock) < 1e-5
        set_scale(loop.transformer, 0.3)
        assert difference(loop(joint_attention_kwargs=IMAGE), scaled) < 1e-5
    assert difference(loop(joint_attention_kwargs=IMAGE), scaled) == 0


def test_layers_of_stable_diffusion_3_with_an_ip_adapter_stay_as_they_are() -> None:
    """It knows them by their class, and would ignore the picture and its scale under ours."""
    loop = Loop("sd3")
    attention = loop.transformer.transformer_blocks[0].attn
    stock = attention.processor = SD3IPAdapterJointAttnProcessor2_0(32, 32, 4, 32)
    with pytest.warns(UserWarning, match="accel leaves layers with an IP-Adapter dense in this model"):
        handle = accel.enable(loop, "full", block=16)
    assert attention.processor is stock
    handle.disable()
    assert attention.processor is stock


def test_processors_set_by_hand_leave_an_ip_adapter_in_its_place() -> None:
    loop = adapted()
    attention, before = loop.transformer.transformer_blocks[0].attn, set(loop.transformer.state_dict())
    loop.transformer.set_attn_processor(accel.attn_processors(loop.transformer, "full", block=16))
    assert isinstance(attention.processor, FluxIPAdapterAttnProcessor)
    assert set(loop.transformer.state_dict()) == before
    accel.disable(loop.transformer)


def test_weights_of_an_ip_adapter_stay_in_the_model() -> None:
    loop = adapted()
    attention, before = loop.transformer.transformer_blocks[0].attn, set(loop.transformer.state_dict())
    stock = attention.processor
    with accel.enabled(loop, "full", block=16):
        assert set(loop.transformer.state_dict()) == before and any("to_k_ip" in name for name in before)
        loop.transformer.to(torch.float64)
        assert stock.to_k_ip[0].weight.dtype == torch.float64
    assert attention.processor is stock


def weights_of_an_adapter() -> dict[str, dict[str, torch.Tensor]]:
    """Return what `load_ip_adapter` reads from a file, of a width of 32 and pictures of 16 numbers."""
    proj = {"proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.randn(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    weights = {f"0.to_{name}_ip.weight": torch.randn(32, 32) for name in "kv"}
    return {
        "image_proj": proj | norm,
        "ip_adapter": weights | {f"0.to_{name}_ip.bias": torch.randn(32) for name in "kv"},
    }


def test_an_adapter_that_is_loaded_while_accel_is_on_takes_our_place() -> None:
    """Diffusers makes the processors of all other layers anew, from the class of those that are set: ours."""
    loop = Loop("flux")
    with accel.enabled(loop, "full", block=16):
        loop.transformer._load_ip_adapter_weights(weights_of_an_adapter(), low_cpu_mem_usage=False)
        kinds = {type(processor) for processor in processors(loop.transformer).values()}
        assert kinds == {FluxAttnProcessor, FluxIPAdapterAttnProcessor}
        with pytest.warns(
            UserWarning, match="2 layers had their processors replaced after accel.enable; call it again"
        ):
            stock = loop(joint_attention_kwargs=IMAGE)
    with accel.enabled(loop, "full", block=16) as handle:
        assert difference(loop(joint_attention_kwargs=IMAGE), stock) < 1e-5
        assert {record.layer for record in handle.stats()} == {0, 1}


def test_an_adapter_is_not_unloaded_while_accel_is_on() -> None:
    loop = adapted()
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, loop.transformer)
    with accel.enabled(pipe, "full", block=16):
        with pytest.raises(ValueError, match=r"accel is on; call accel.disable\(pipe\) before loading or unloading"):
            pipe.unload_ip_adapter()
    pipe.unload_ip_adapter()
    assert {type(processor) for processor in processors(loop.transformer).values()} == {FluxAttnProcessor}
