"""Loading of video pipelines, and one clear line for everything that cannot be loaded or generated."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

from accel.caching.table import Table
from accel.errors import InputError
from accel.models.adapters import adapter_for, transformers_of
from accel.models.adapters.adapter import Adapter
from accel.workbench.index import check_index, first_line
from accel.workbench.modular import MODULAR_INDEX, call_defaults, load_modular
from accel.workbench.preparing import Preparation, prepare

EMBEDDED_NAME = "shapes-wan"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedPipeline:
    """A diffusers pipeline, the name it was asked for by, the call arguments it is made for, and its local folder."""

    pipeline: Any  # a DiffusionPipeline, whose parts are dynamic attributes
    name: str
    defaults: dict[str, Any]
    folder: Path | None = None

    @property
    def transformers(self) -> list[Any]:
        """The one or two transformers that denoise."""
        return transformers_of(self.pipeline)

    @property
    def adapter(self) -> Adapter:
        """What accel knows of the model's family."""
        return adapter_for(self.transformers[0])

    @property
    def device(self) -> torch.device:
        """Where the transformers compute; while they rest they may be offloaded."""
        return self.pipeline._execution_device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformers compute in."""
        return self.transformers[0].dtype

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return how many tokens such a video has in self-attention."""
        assert self.adapter.grid is not None
        return math.prod(self.adapter.grid(self.pipeline, frames, height, width))

    def calibrated(self, steps: int | None) -> Table | None:
        """Return the table of blocks that lies beside the model for so many steps, in `tables/STEPS.json`, or None."""
        steps = self.defaults["num_inference_steps"] if steps is None else steps
        file = None if self.folder is None else self.folder / "tables" / f"{steps}.json"
        return Table(table=str(file)) if file is not None and file.is_file() else None

    def check(self, frames: int, height: int, width: int, steps: int) -> None:
        """Raise InputError, naming the nearest accepted values, if the pipeline cannot make such a video."""
        if steps < 1:
            raise InputError(f"steps is {steps}; it must be at least 1")
        assert self.adapter.sizes is not None
        given = {"frames": frames, "height": height, "width": width}
        for name, size in self.adapter.sizes(self.pipeline).items():
            if not size.accepts(given[name]):
                choice = " or ".join(str(value) for value in size.nearest(given[name]))
                raise InputError(f"{name} is {given[name]}; this model makes {size}: nearest is {choice}")


def embedded_folder() -> Path:
    """Return where the embedded model lies in the installed package."""
    return Path(__file__).parents[1] / "embedded" / EMBEDDED_NAME


def load_pipeline(
    model: str | None = None, device: str = "auto", dtype: str = "auto", how: Preparation | None = None
) -> LoadedPipeline:
    """Load the embedded model (None), a local folder or a Hugging Face id; InputError on what cannot be used."""
    torch_device = _device(device)
    torch_dtype = _dtype(dtype, torch_device)
    name = model or EMBEDDED_NAME
    source = _source(name)
    workflow = check_index(name, source)
    # The VAE of Wan loses detail below float32, and decoding is short.
    kinds = {"default": torch_dtype, "vae": torch.float32}
    try:
        if workflow is not None:
            pipeline = load_modular(source, workflow, kinds)
        else:
            pipeline = DiffusionPipeline.from_pretrained(source, dtype=kinds)
    except Exception as error:
        raise InputError(f"model {name!r} could not be loaded: {first_line(error)}") from error
    check_weights(pipeline)
    prepare(pipeline, how or Preparation(), torch_device)
    folder = Path(source) if Path(source).is_dir() else None
    return LoadedPipeline(pipeline, name, _defaults(pipeline, source), folder)


def check_weights(pipeline: Any) -> None:
    """Raise InputError naming the first transformer weight that holds NaN or Inf."""
    for transformer in transformers_of(pipeline):
        for name, weight in transformer.named_parameters():
            if weight.is_floating_point() and not weight.isfinite().all():
                raise InputError(
                    f"transformer weight {name} holds NaN or Inf in {weight.dtype}; "
                    "weights must be finite: load a sound checkpoint or another --dtype"
                )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"unknown device {device!r}; accepted: auto, cpu, cuda, cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not here, torch sees {torch.cuda.device_count()} CUDA devices; use cpu")
    return chosen


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; accepted: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def fast_bfloat16(device: torch.device) -> bool:
    """Tell whether a GPU, or this processor, multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _source(name: str) -> str:
    """Return the folder, or the Hugging Face id, that a model's name stands for."""
    if name == EMBEDDED_NAME:
        if not (embedded_folder() / "model_index.json").is_file():
            raise InputError(f"the embedded model {name} is not in this installation; give --model FOLDER_OR_ID")
        return str(embedded_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / index).is_file() for index in ("model_index.json", MODULAR_INDEX)):
            raise InputError(f"{name!r} is not a pipeline folder: it has no model_index.json; give the folder above it")
        return str(path)
    if path.exists():
        raise InputError(f"{name!r} is a file; give a folder that a diffusers pipeline was saved to")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise InputError(f"model folder {name!r} does not exist; give a pipeline folder or an id like owner/model")
    return name


def _defaults(pipeline: Any, source: str) -> dict[str, Any]:
    """Return the call arguments of generation.json over those of the pipeline's own signature."""
    parameters = call_defaults(pipeline)
    options = adapter_for(transformers_of(pipeline)[0]).options
    defaults = {name: parameters[name] for name in options if name in parameters}
    file = Path(source) / "generation.json"
    if not file.is_file():
        return defaults
    try:
        own = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {first_line(error)}") from error
    if not isinstance(own, dict) or set(own) - set(defaults):
        raise InputError(f"{file} must hold an object with keys from: {', '.join(defaults)}")
    return defaults | own
