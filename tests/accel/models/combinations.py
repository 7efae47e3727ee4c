"""What people combine a pipeline with: each is a function that changes a transformer in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from tests.accel.wan_models import STEPS

Combination = Callable[[Any, Path], None]
LINEAR = r"(to_q|to_k|to_v|to_out\.0)"


def lora(pipe: Any, folder: Path, names: tuple[str, ...] = ("first",)) -> None:
    """Give the transformer adapters of rank 4 whose weights are not zero."""
    peft = pytest.importorskip("peft")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=rf".*attn1\.{LINEAR}", init_lora_weights=False)
        pipe.transformer.add_adapter(config, adapter_name=name)
    pipe.transformer.set_adapters(names[-1])


def lora_fused(pipe: Any, folder: Path) -> None:
    """Add an adapter into the weights."""
    lora(pipe, folder)
    pipe.transformer.fuse_lora()


def lora_swapped(pipe: Any, folder: Path) -> None:
    """Take the second of two adapters, at half its strength, and delete the first."""
    lora(pipe, folder, ("first", "second"))
    pipe.transformer.set_adapters(["second"], [0.5])
    pipe.transformer.delete_adapters("first")


def lora_file(pipe: Any, folder: Path) -> None:
    """Load an adapter from a file, as a user of the pipeline does."""
    peft = pytest.importorskip("peft")
    from tests.accel.wan_models import pipeline

    other = pipeline("wan-2.1")
    lora(other, folder)
    weights = peft.get_peft_model_state_dict(other.transformer, adapter_name="first")
    type(pipe).save_lora_weights(folder, transformer_lora_layers=weights)
    pipe.load_lora_weights(folder)


def model_offload(pipe: Any, folder: Path) -> None:
    """Move each model to the device only while it runs."""
    pipe.enable_model_cpu_offload(device="cpu")


def group_offload(kind: str, to_disk: bool = False) -> Combination:
    """Return what moves groups of layers to the device only while they run."""

    def combine(pipe: Any, folder: Path) -> None:
        options: dict[str, Any] = dict(num_blocks_per_group=1) if kind == "block_level" else {}
        apply_group_offloading(
            pipe.transformer,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=kind,
            offload_to_disk_path=str(folder) if to_disk else None,
            **options,
        )

    return combine


def layerwise_casting(pipe: Any, folder: Path) -> None:
    """Keep weights in eight bits while they rest."""
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def fused(pipe: Any, folder: Path) -> None:
    """Make one matrix of those for queries, keys and values."""
    pipe.transformer.fuse_qkv_projections()


def torchao(kind: str) -> Combination:
    """Return what quantises the linear layers by torchao."""

    def combine(pipe: Any, folder: Path) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(pipe.transformer.blocks, getattr(quantization, kind)())

    return combine


def quanto(pipe: Any, folder: Path) -> None:
    """Quantise the weights by optimum-quanto."""
    library = pytest.importorskip("optimum.quanto")
    library.quantize(pipe.transformer.blocks, weights=library.qint8)
    library.freeze(pipe.transformer.blocks)


def gguf(pipe: Any, folder: Path) -> None:
    """Put linear layers with GGUF weights in the place of those of the blocks."""
    quants = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = quants.GGMLQuantizationType.Q8_0
    for module in list(pipe.transformer.blocks.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear):
                weight = torch.from_numpy(quants.quants.quantize(linear.weight.detach().numpy(), kind))
                small = GGUFLinear(
                    linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=torch.float32
                )
                small.weight, small.bias = GGUFParameter(weight, quant_type=kind), linear.bias
                setattr(module, name, small)


def their_cache(name: str, **options: Any) -> Combination:
    """Return what lets one of diffusers' own caches work; `STEPS` stands for the number of steps."""

    def combine(pipe: Any, folder: Path) -> None:
        given = {key: value(pipe) if callable(value) else value for key, value in options.items()}
        pipe.transformer.enable_cache(getattr(diffusers, name)(**given))

    return combine


def timestep_of(pipe: Any) -> Callable[[], int]:
    """Return what PAB asks for the timestep."""
    return lambda: pipe.current_timestep


COMBINATIONS: dict[str, Combination] = {
    "fused projections": fused,
    "lora": lora,
    "lora fused": lora_fused,
    "lora swapped": lora_swapped,
    "lora from a file": lora_file,
    "model offload": model_offload,
    "group offload by block": group_offload("block_level"),
    "group offload by layer": group_offload("leaf_level"),
    "group offload to disk": group_offload("leaf_level", to_disk=True),
    "layerwise casting": layerwise_casting,
    "torchao int8 weights": torchao("Int8WeightOnlyConfig"),
    "torchao int8": torchao("Int8DynamicActivationInt8WeightConfig"),
    "quanto": quanto,
    "gguf": gguf,
    "FirstBlockCache": their_cache("FirstBlockCacheConfig", threshold=0.05),
    "MagCache": their_cache("MagCacheConfig", num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS),
    "TaylorSeer": their_cache("TaylorSeerCacheConfig", cache_interval=2, disable_cache_before_step=2),
    "PyramidAttentionBroadcast": their_cache(
        "PyramidAttentionBroadcastConfig",
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=timestep_of,
    ),
    "FasterCache": their_cache(
        "FasterCacheConfig",
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 900),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, 640),
        attention_weight_callback=lambda pipe: lambda module: 0.5,
        tensor_format="BFCHW",
        current_timestep_callback=timestep_of,
        is_guidance_distilled=True,
    ),
}
