"""`accel info`: what this machine can run."""

from __future__ import annotations

from accel.commands.options import folding_table, installed_version, plain_console

PACKAGES = ("visual-accel", "torch", "diffusers", "transformers", "triton")


def info() -> None:
    """Show devices, versions, and for every kernel backend whether it runs here and why not."""
    import torch

    from accel.workbench.loading import embedded_folder
    from sparse_kernels import backend_reasons

    table = folding_table("what", "here")
    for device in _devices():
        table.add_row("device", device)
    for package in PACKAGES:
        table.add_row(package, installed_version(package))
    for kind in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for backend, reason in backend_reasons(kind).items():
            table.add_row(f"backend {backend} on {kind}", "usable" if reason is None else f"not usable: {reason}")
    for dtype, instructions in _instruction_sets().items():
        table.add_row(f"CPU kernel, {dtype}", instructions or "not available")
    present = (embedded_folder() / "model_index.json").is_file()
    table.add_row("embedded model shapes-wan", "present" if present else "missing: give --model FOLDER_OR_ID")
    plain_console().print(table)


def _devices() -> list[str]:
    import torch

    from accel.workbench.facts import device_name

    cpu = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"
    return [cpu, *(device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))]


def _instruction_sets() -> dict[str, str | None]:
    """Return what the CPU kernel uses for each element type on this machine."""
    import torch

    from sparse_kernels._extension import instruction_set

    return {name: instruction_set(getattr(torch, name)) for name in ("float32", "bfloat16")}
