"""Build the C++ kernels once, with the compiler of this machine, and keep the library in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
# Torch's stable ABI of 2.11: the library works unchanged with every newer torch.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
AVX512_PARTS = "avx512f", "avx512bw", "avx512vl", "avx512dq"
AVX512 = [*(f"-m{name}" for name in AVX512_PARTS), "-mfma"]
BFLOAT16 = [*AVX512, "-mavx512bf16"]
AMX = [*BFLOAT16, "-mamx-tile", "-mamx-bf16"]
COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast"]
COMMON += ["-fno-strict-aliasing"]  # scratch holds numbers of several types
LINK = ["-shared", "-ltorch_cpu"]
# folder -> what its kernels are called
KINDS = {
    "attention": "kernel",
    "reduce": "reducer",
    "convolve": "convolver",
    "points": "searcher",
    "spikes": "accumulator",
}
# Distances between points have the same bits everywhere, and a fused multiply-add rounds once instead of twice.
FLAGS = {"points": ["-ffp-contract=off"]}
Units = dict[str, tuple[str, list[str]]]  # object file -> (source, flags)

logger = logging.getLogger(__name__)


def build(compiler: str, flags: tuple[str, ...] = ()) -> Path:
    """Return the library, built if need be; safe when several processes start at once. `flags` are for debugging."""
    from filelock import FileLock

    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    folder, units = cache_folder(), _units(platform.machine())
    origin = f"{version}{platform.libc_ver()}"  # in a shared folder one compiler may serve several systems
    library = folder / f"{_name(units, flags)}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}.so"
    if _is_whole(library):
        return library
    with FileLock(f"{library}.lock"):
        if not _is_whole(library):
            logger.warning(
                "%s the C++ kernels for this processor, which takes about a minute, once",
                f"{library} is damaged: building" if library.exists() else "building",
            )
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                built = _compile(compiler, units, Path(temporary), flags)
                _record(library).write_text(_checksum(built))  # first: a library without its checksum is built again
                os.replace(built, library)
    return library


def find_compilers() -> list[str]:
    """Return the C++ compilers of this machine, the first to try first."""
    found = [path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))]
    known = set(map(os.path.realpath, found[:-1]))
    # c++ is mostly one of the others by another name.
    return found[:-1] if found and found[-1].endswith("c++") and os.path.realpath(found[-1]) in known else found


def find_libraries() -> Iterator[Path]:
    """Return the libraries of these sources that were built before, by whichever compiler."""
    folders: list[Path] = []
    with suppress(RuntimeError):  # nobody knows where home is
        folders.append(_usual_folder())  # whether or not it can be written
    with suppress(OSError):  # nothing can be written anywhere
        folders.append(cache_folder())
    name = _name(_units(platform.machine()))
    found: list[Path] = []
    for folder in dict.fromkeys(folders):
        with suppress(OSError):  # a home that must not be entered
            found += sorted(folder.glob(f"{name}-*.so"))
    return (library for library in found if _is_whole(library))


def _name(units: Units, flags: tuple[str, ...] = ()) -> str:
    """Return what tells libraries of other sources and flags apart."""
    digest = hashlib.sha256(repr((units, TORCH_TARGET, COMMON, LINK, *flags)).encode())
    for source in sorted(SOURCES.glob("*/*")):
        digest.update(source.read_bytes())
    return f"sparse_kernels-{digest.hexdigest()[:16]}"


def cache_folder() -> Path:
    """Return where built kernels are kept: the user's cache, or a private temporary folder if that cannot be had."""
    try:
        folder = _usual_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        return _private_folder()


def _usual_folder() -> Path:
    return Path.home() / ".cache" / "visual-accel"


def _private_folder() -> Path:
    """Return the same folder to every process of this user, or one of its own where another user was there first."""
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir()) / f"visual-accel-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="visual-accel-"))


def _record(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _is_whole(library: Path) -> bool:
    """Return whether the library is what was built: loading a truncated one kills the process."""
    try:
        return _record(library).read_text() == _checksum(library)
    except OSError:  # one of them is not there, or must not be read
        return False


def _units(machine: str) -> Units:
    """Return what is compiled: the schedulers once, the kernels once for each instruction set."""
    x86 = machine in ("x86_64", "AMD64")
    units = _schedulers(x86) | _vector("portable", 4, 3, "true") | _narrow("amx_emulated", "true", "-DEMULATE")
    units |= _narrow("amx_int8_emulated", "true", "-DEMULATE", "-DINT8")
    if not x86:
        return units
    avx2 = '__builtin_cpu_supports("avx2")&&__builtin_cpu_supports("fma")'
    avx512 = "&&".join(f'__builtin_cpu_supports("{name}")' for name in (*AVX512_PARTS, "fma"))
    bf16 = f'{avx512}&&__builtin_cpu_supports("avx512bf16")'
    vnni = f'{bf16}&&__builtin_cpu_supports("avx512vnni")'
    products = ("-DBFLOAT16_PRODUCTS", *BFLOAT16)
    return {
        **units,
        **_vector("avx2", 8, 6, avx2, "-mavx2", "-mfma"),
        **_vector("avx512", 16, 12, avx512, *AVX512),
        **_vector("avx512_bf16", 16, 12, bf16, *products, folders=("reduce", "convolve")),
        **_narrow("avx512_bf16", bf16, "-DROWS=12", *BFLOAT16),
        **_narrow("avx512_int8", vnni, "-DROWS=12", *BFLOAT16, "-mavx512vnni", "-DINT8"),
        **_narrow("amx", "amx_is_usable()", *AMX),
        **_narrow("amx_int8", "amx_is_usable()", *AMX, "-mamx-int8", "-DINT8"),
    }


def _schedulers(x86: bool) -> Units:
    """Return the files that define operators, on torch's headers; each knows whether the x86 kernels are there."""
    sources = (path for path in SOURCES.glob("*/*.cpp") if not path.stem.endswith(("_vector", "_narrow")))
    return {path.stem: (f"{path.parent.name}/{path.name}", ["-DX86"] if x86 else []) for path in sorted(sources)}


def _vector(name: str, lanes: int, rows: int, test: str, *flags: str, folders: tuple[str, ...] = tuple(KINDS)) -> Units:
    """Return the kernels of one instruction set."""
    common = [f'-DNAME="{name}"', f"-DLANES={lanes}", f"-DROWS={rows}", f"-DCAN_RUN={test}", *flags]
    return {
        f"{folder}_{name}": (
            f"{folder}/{folder}_vector.cpp",
            [f"-DKERNEL={KINDS[folder]}_{name}", *common, *FLAGS.get(folder, ())],
        )
        for folder in folders
    }


def _narrow(name: str, test: str, *flags: str) -> Units:
    """Return the kernels of one instruction set that multiply bf16 or int8."""
    # Others have bf16 in AMX tiles here; in AVX-512 registers it is a part of their vector kernels.
    folders = ("attention",) if "-DINT8" in flags or name == "avx512_bf16" else ("attention", "convolve", "reduce")
    common = [f'-DNAME="{name}"', f"-DCAN_RUN={test}", *flags]
    return {
        f"{folder}_narrow_{name}": (
            f"{folder}/{folder}_narrow.cpp",
            [f"-DKERNEL={KINDS[folder]}_{name}", *common],
        )
        for folder in folders
    }


def _compile(compiler: str, units: Units, folder: Path, extra: tuple[str, ...]) -> Path:
    torch_folder = Path(torch.__file__).parent
    include = ["-isystem", str(torch_folder / "include"), TORCH_TARGET]

    def one(name: str) -> None:
        source, flags = units[name]
        headers = [] if source.endswith(("_vector.cpp", "_narrow.cpp")) else include
        options = [*COMMON, f"-I{SOURCES}", *extra, *headers, *flags]
        command = [compiler, *options, "-c", str(SOURCES / source), "-o", objects[name]]
        subprocess.run(command, capture_output=True, text=True, check=True)

    # The linker takes the first of what several have by one name: those that run anywhere come first.
    objects = {name: str(folder / f"{name}.o") for name in units}

    with ThreadPoolExecutor() as pool:
        # Those first that an old compiler cannot build: one that fails is enough.
        jobs = [pool.submit(one, name) for name in sorted(units, key=lambda name: "amx" not in name)]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    library = folder / "library.so"
    link = [compiler, *extra, *objects.values(), "-o", str(library), f"-L{torch_folder / 'lib'}", *LINK]
    subprocess.run(link, capture_output=True, text=True, check=True)
    return library
