"""Build the C++ kernels once, with the compiler of this machine, and load them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
# Torch's stable ABI of 2.11: the library works unchanged with every newer torch.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
BFLOAT16 = [*AVX512, "-mavx512bf16"]
AMX = [*BFLOAT16, "-mamx-tile", "-mamx-bf16"]


# These are built on torch's headers; each knows whether the x86 kernels are there.
SCHEDULERS = {
    "attention": "attention",
    "block_scores": "reduce",
    "centroids": "reduce",
    "kmeans": "reduce",
    "sparse_conv": "convolve",
}


def _vector(name: str, lanes: int, rows: int, test: str, *flags: str) -> dict[str, tuple[str, list[str]]]:
    """Return the attention, the reducing and the convolving kernel of one instruction set."""
    common = [f'-DNAME="{name}"', f"-DLANES={lanes}", f"-DROWS={rows}", f"-DCAN_RUN={test}", *flags]
    return {
        name: ("attention/attention_vector.cpp", [f"-DKERNEL=kernel_{name}", *common]),
        f"reduce_{name}": ("reduce/reduce_vector.cpp", [f"-DKERNEL=reducer_{name}", *common]),
        f"convolve_{name}": ("convolve/convolve_vector.cpp", [f"-DKERNEL=convolver_{name}", *common]),
    }


def _narrow(name: str, test: str, *flags: str) -> tuple[str, list[str]]:
    """Return the attention kernel of one instruction set that multiplies bf16 or int8."""
    return "attention/attention_narrow.cpp", [
        f'-DNAME="{name}"',
        f"-DKERNEL=kernel_{name}",
        f"-DCAN_RUN={test}",
        *flags,
    ]


def _units(machine: str) -> dict[str, tuple[str, list[str]]]:
    """Return object file -> (source, flags); one object for each instruction set."""
    x86 = machine in ("x86_64", "AMD64")
    units = {
        **{name: (f"{folder}/{name}.cpp", ["-DX86"] if x86 else []) for name, folder in SCHEDULERS.items()},
        **_vector("portable", 4, 3, "true"),
        "amx_emulated": _narrow("amx_emulated", "true", "-DEMULATE"),
        "amx_int8_emulated": _narrow("amx_int8_emulated", "true", "-DEMULATE", "-DINT8"),
    }
    if not x86:
        return units
    avx2 = '__builtin_cpu_supports("avx2")&&__builtin_cpu_supports("fma")'
    avx512 = '__builtin_cpu_supports("avx512f")&&__builtin_cpu_supports("avx512bw")&&__builtin_cpu_supports("avx512vl")'
    bf16 = f'{avx512}&&__builtin_cpu_supports("avx512bf16")'
    vnni = f'{bf16}&&__builtin_cpu_supports("avx512vnni")'
    products = [
        '-DNAME="avx512_bf16"',
        "-DLANES=16",
        "-DROWS=12",
        f"-DCAN_RUN={bf16}",
        "-DBFLOAT16_PRODUCTS",
        *BFLOAT16,
    ]
    return {
        **units,
        **_vector("avx2", 8, 6, avx2, "-mavx2", "-mfma"),
        **_vector("avx512", 16, 12, avx512, *AVX512),
        "convolve_avx512_bf16": ("convolve/convolve_vector.cpp", ["-DKERNEL=convolver_avx512_bf16", *products]),
        "reduce_avx512_bf16": ("reduce/reduce_vector.cpp", ["-DKERNEL=reducer_avx512_bf16", *products]),
        "avx512_bf16": _narrow("avx512_bf16", bf16, "-DROWS=12", *BFLOAT16),
        "avx512_int8": _narrow("avx512_int8", vnni, "-DROWS=12", *BFLOAT16, "-mavx512vnni", "-DINT8"),
        "amx": _narrow("amx", "amx_is_usable()", *AMX),
        "amx_int8": _narrow("amx_int8", "amx_is_usable()", *AMX, "-mamx-int8", "-DINT8"),
    }


@functools.cache
def load() -> str | None:
    """Load the kernels, building them if this machine has none yet; return the reason when that fails."""
    compiler = _compiler()
    if compiler is None:
        return "no C++ compiler was found; install one (Debian: apt-get install g++) to get the fast CPU kernel"
    try:
        torch.ops.load_library(str(build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"building or loading the C++ kernel with {compiler} failed: {detail.strip().splitlines()[-1]}"
    _register_fake()
    return None


def _compiler() -> str | None:
    return next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Return where built kernels are kept: the user's cache, or a private temporary folder if that is read-only."""
    folder = Path.home() / ".cache" / "visual-accel"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="visual-accel-"))


def build(compiler: str, flags: tuple[str, ...] = ()) -> Path:
    """Return the library, built if need be; safe when several processes start at once. `flags` are for debugging."""
    from filelock import FileLock

    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    units = _units(platform.machine())
    digest = hashlib.sha256(repr((version, units, TORCH_TARGET, *flags)).encode())
    for source in sorted(SOURCES.glob("*/*")):
        digest.update(source.read_bytes())
    folder = cache_folder()
    library = folder / f"sparse_kernels-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with FileLock(f"{library}.lock"):
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                os.replace(_compile(compiler, units, Path(temporary), flags), library)
    return library


def _compile(compiler: str, units: dict[str, tuple[str, list[str]]], folder: Path, extra: tuple[str, ...] = ()) -> Path:
    torch_folder = Path(torch.__file__).parent
    common = [
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-ffp-contract=fast",
        f"-I{SOURCES}",
        *extra,
    ]
    include = ["-isystem", str(torch_folder / "include"), TORCH_TARGET]

    def one(name: str) -> str:
        source, flags = units[name]
        output = str(folder / f"{name}.o")
        headers = include if name in SCHEDULERS else []
        command = [compiler, *common, *headers, *flags, "-c", str(SOURCES / source), "-o", output]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return output

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(one, units))
    library = folder / "library.so"
    link = [compiler, "-shared", *extra, *objects, "-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    subprocess.run(link, capture_output=True, text=True, check=True)
    return library


def _register_fake() -> None:
    @torch.library.register_fake("sparse_kernels::block_sparse_attention_cpu")
    def _(q: torch.Tensor, k: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)

    @torch.library.register_fake("sparse_kernels::kmeans_cpu")
    def _(x: torch.Tensor, centroids: torch.Tensor, *rest: object) -> tuple[torch.Tensor, ...]:
        labels, sizes = x.new_empty(x.shape[:3], dtype=torch.int32), x.new_empty(centroids.shape[:3], dtype=torch.int32)
        offsets = x.new_empty((*sizes.shape[:2], sizes.shape[2] + 1), dtype=torch.int32)
        return labels, torch.empty_like(centroids), sizes, torch.empty_like(labels, dtype=torch.int64), offsets

    @torch.library.register_fake("sparse_kernels::block_mass_cpu")
    def _(q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        blocks = [offsets.shape[-1] - 1 for offsets in rest[:2]]
        return q.new_empty((*q.shape[:2], *blocks), dtype=torch.float32)

    @torch.library.register_fake("sparse_kernels::centroid_error_cpu")
    def _(queries: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return queries.new_empty((*queries.shape[:2], rest[4].shape[2], queries.shape[2]))

    @torch.library.register_fake("sparse_kernels::merge_centroids_cpu")
    def _(q: torch.Tensor, out: torch.Tensor, *rest: object) -> torch.Tensor:
        return torch.empty_like(out)

    @torch.library.register_fake("sparse_kernels::pooled_cpu")
    def _(x: torch.Tensor, offsets: torch.Tensor, *rest: object) -> torch.Tensor:
        return x.new_empty((*x.shape[:2], offsets.shape[-1] - 1, x.shape[3]), dtype=torch.float32)


def instruction_set(dtype: torch.dtype) -> str | None:
    """Return the instruction set that the CPU kernel uses for `dtype` or int8, or None where it is not available."""
    if load() is not None:
        return None
    element = {torch.bfloat16: "bfloat16", torch.int8: "int8"}.get(dtype, "float32")
    return torch.ops.sparse_kernels.instruction_set(element) or None
