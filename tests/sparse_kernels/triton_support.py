"""What the tests of Triton kernels share: a process with the interpreter, and builds for devices that are not here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from filelock import FileLock

# (compute capability, shared memory of one thread block in KiB, instruction that multiplies matrices)
DEVICES = [(80, 163, "mma.sync"), (90, 227, "wgmma.mma_async"), (100, 227, "tcgen05.mma")]


def report(checks: dict[str, Callable[[], None]]) -> None:
    """Print, as the last line, the traceback of every check that fails; called in a process of its own."""
    failures: dict[str, str | None] = dict.fromkeys(checks)
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


def interpret(file: str, folder: Path) -> dict[str, Any]:
    """Run a test file as a script in Triton's interpreter, once for all processes whose `folder` has the same parent.

    Triton decides at import what is interpreted. Memory comes poisoned there, as in the tests here.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _interpreted(file)
    kept = folder.parent / ("-".join(Path(file).parts[-3:]) + ".json")
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(_interpreted(file)))
        return json.loads(kept.read_text())


def _interpreted(file: str) -> dict[str, Any]:
    code = "import runpy, sys, torch; torch.use_deterministic_algorithms(True)\n"
    code += "runpy.run_path(sys.argv[1], run_name='__main__')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run([sys.executable, "-c", code, file], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


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
