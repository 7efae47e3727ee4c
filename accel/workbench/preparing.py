"""What is done to a loaded pipeline before it runs: adapters, small weights, offloading, compiled blocks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from accel.errors import InputError
from accel.models.adapters import transformers_of
from accel.workbench.modular import class_of

OFFLOADS = ("model", "group")
QUANTISATIONS = ("int8",)


@dataclass(frozen=True)
class Preparation:
    """A LoRA (a file, a folder or an id of the Hub), what is offloaded, how weights are kept, and whether to compile.

    InputError on a word that is not known, or where a package that it needs is not installed.
    """

    lora: str | None = None
    offload: str | None = None
    quantize: str | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, value, accepted in (("offload", self.offload, OFFLOADS), ("quantize", self.quantize, QUANTISATIONS)):
            if value is not None and value not in accepted:
                raise InputError(f"unknown {name} {value!r}; accepted: {', '.join(accepted)}")
        for wanted, package, purpose in ((self.lora, "peft", "--lora"), (self.quantize, "torchao", "--quantize")):
            if wanted is not None and find_spec(package) is None:
                raise InputError(f"{purpose} needs the package {package}: pip install {package}")


def prepare(pipeline: Any, how: Preparation, device: torch.device) -> Any:
    """Return the pipeline on its device, prepared; InputError on a LoRA that cannot be read or is another model's."""
    if how.lora is not None:
        _load_lora(pipeline, how.lora)
    if how.quantize == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]

        for transformer in transformers_of(pipeline):
            quantize_(transformer, Int8WeightOnlyConfig())
    if how.offload is None:
        pipeline.to(device)
    else:
        _offload(pipeline, how.offload, device)
    for transformer in transformers_of(pipeline) if how.compiled else []:
        transformer.compile_repeated_blocks()
    return pipeline


def _offload(pipeline: Any, kind: str, device: torch.device) -> None:
    if not hasattr(pipeline, "enable_model_cpu_offload"):
        raise InputError(f"{class_of(pipeline)} cannot be offloaded; leave --offload out")
    if kind == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(device, offload_type="leaf_level")


def _load_lora(pipeline: Any, lora: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(f"{class_of(pipeline)} takes no LoRA; leave --lora out")
    try:
        pipeline.load_lora_weights(lora)
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"lora {lora!r} could not be loaded into {class_of(pipeline)}: {said}") from error
    if not pipeline.get_active_adapters():
        raise InputError(f"lora {lora!r} holds nothing for {class_of(pipeline)}; give one of this model")
