"""What the tests of Triton kernels share: a process with the interpreter, and builds for devices that are not here."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton

# (compute capability, shared memory of one thread block in KiB, instruction that multiplies matrices)
DEVICES = [(80, 163, "mma.sync"), (90, 227, "wgmma.mma_async"), (100, 227, "tcgen05.mma")]
# The cards of workstations, which multiply as the first of those: what takes most shared memory is built for them too.
SMALL_DEVICES = [(86, 99, "mma.sync"), (120, 99, "mma.sync")]


def report(checks: dict[str, Callable[[], None]]) -> None:
    """Print, as the last line, the traceback of every check that fails; called in a process of its own."""
    failures: dict[str, str | None] = dict.fromkeys(checks)
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


def build(
    kernel: Any, capability: int, types: dict[str, str | tuple], constants: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Compile a kernel as a launch would: pointers aligned; arguments that `types` leaves out are int32.

    A tuple of types is a tuple of strides; three are the strides of rows, which are divisible by 16.
    """
    signature, constexprs, attributes = {}, {}, {}
    aligned = [["tt.divisibility", 16]]
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[(i,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name, "i32")
        if name.startswith("p_"):
            attributes[(i,)] = aligned
        elif len(signature[name]) == 3 and isinstance(signature[name], tuple):
            attributes |= {(i, j): aligned for j in range(3)}
    source = triton.compiler.ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", capability, 32), options=options)


def assert_fits(built: Any, kilobytes: int) -> None:
    """Shared memory within the device's limit, nothing spilled to local memory."""
    assert built.metadata.shared <= kilobytes * 1024
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"STACK:(\d+)", usage) == ["0"], f"registers spill to local memory: {usage}"
