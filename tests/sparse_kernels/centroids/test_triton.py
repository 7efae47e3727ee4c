"""The error of centroids in Triton: parity in the interpreter and on a GPU, ahead-of-time builds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparse_kernels._triton import compiler_options  # noqa: E402
from sparse_kernels.centroids import triton as backend  # noqa: E402
from sparse_kernels.kmeans import Clusters  # noqa: E402
from tests.sparse_kernels.centroids.test_centroids import SCALE, Case, brute_log_error, make_case  # noqa: E402
from tests.sparse_kernels.interpreter import Interpreter  # noqa: E402
from tests.sparse_kernels.triton_support import DEVICES, assert_fits, build, report  # noqa: E402

# In the slow interpreter fewer tokens will do, if a cluster takes more than one tile of them.
FEW = {"tokens": 150, "clusters": (18, 9)}


def moved(case: Case, device: str) -> Case:
    """Return the case on a device."""

    def clusters(given: Clusters) -> Clusters:
        return Clusters(**{name: field.to(device) for name, field in vars(given).items()})

    tensors = {name: getattr(case, name).to(device) for name in ("q", "k", "v", "values")}
    return replace(case, queries=clusters(case.queries), keys=clusters(case.keys), **tensors)


def check_parity(
    head_dim: int, dtype: torch.dtype, spread: float, precision: str, limit: float, device: str, **sizes: Any
) -> None:
    """Errors as logarithms, beside brute force in float64."""
    case = make_case(head_dim, dtype, strided=head_dim == 64, spread=spread, **(sizes or FEW))
    rounded = precision == "bfloat16" and dtype.itemsize == 2
    assert case.keys.sizes.max() > backend.TILES[rounded][1] and (case.keys.sizes == 0).any()
    expected, here = brute_log_error(case), moved(case, device)
    arguments = (here.queries.centroids, here.k, here.v, here.keys, here.values, SCALE, precision)
    found = backend.centroid_log_error(*arguments).cpu().double()
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert (found - expected)[expected.isfinite()].abs().max() < limit


def check_not_a_number(device: str) -> None:
    """A NaN stays in the errors of its cluster, as in the reference."""
    case = make_case(16, **FEW)
    case.v[0, 1, 7, 3] = torch.nan
    here = moved(case, device)
    arguments = (here.queries.centroids, here.k, here.v, here.keys, here.values, SCALE)
    found = backend.centroid_log_error(*arguments).cpu()
    assert torch.equal(found.isnan(), case.log_error("reference").isnan()) and found.isnan().any()


def check_operator(device: str) -> None:
    case = moved(make_case(**FEW), device)
    fields = (case.keys.order, case.keys.offsets, case.keys.centroids, case.values)
    arguments = (case.queries.centroids, case.k, case.v, *fields, SCALE, False)
    torch.library.opcheck(backend.log_error_triton, arguments, test_utils=("test_schema", "test_faketensor"))


CHECKS = {
    "float32": partial(check_parity, 16, torch.float32, 1, "bfloat16", 1e-5, tokens=100, clusters=(35, 17)),
    "head_dim 130": partial(check_parity, 130, torch.float32, 1, "float32", 1e-4),
    "bfloat16, exactly": partial(check_parity, 40, torch.bfloat16, 1, "float32", 1e-4),
    "strided, rounded": partial(check_parity, 64, torch.float16, 1, "bfloat16", 1e-2),
    "exponents of any size": partial(check_parity, 64, torch.float32, 60, "float32", 0.1),
    "not a number": check_not_a_number,
    "operator": check_operator,
}
ON_A_GPU = CHECKS | {"bfloat16, rounded": partial(check_parity, 128, torch.bfloat16, 1, "bfloat16", 0.1)}


@pytest.fixture(scope="module")
def failures(interpreter: Interpreter) -> dict[str, str | None]:
    return interpreter.said(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_interpreter(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


def test_can_run_names_the_reason() -> None:
    assert "CUDA" in (backend.can_run(torch.zeros(1, 1, 4, 16)) or "")
    many = torch.zeros(1, 1, 4, 16).expand(2, 40_000, 4, 16)
    assert "takes at most 65,535 heads in all, given 80,000" in (backend.can_run(many) or "")


@pytest.mark.parametrize("rounded", [True, False], ids=["rounded", "exact"])
@pytest.mark.parametrize(("capability", "kilobytes", "_"), DEVICES)
def test_ahead_of_time_build(capability: int, kilobytes: int, _: str, rounded: bool) -> None:
    types: dict[str, str | tuple] = {"p_k": "*bf16", "p_v": "*bf16", "p_order": "*i64", "p_offsets": "*i32"}
    types |= dict.fromkeys(("p_queries", "p_centroids", "p_values", "p_error"), "*fp32") | {"scale": "fp32"}
    types |= dict.fromkeys(("k_strides", "v_strides"), ("i32",) * 3)
    block_q, block_t = backend.TILES[rounded]
    constants = {"HEAD_DIM": 128, "BLOCK_D": 128, "BLOCK_Q": block_q, "BLOCK_T": block_t}
    constants |= {"ROUNDED": rounded, "PRECISION": "ieee" if rounded else "tf32x3"}
    built = build(backend.log_error_kernel, capability, types, constants, compiler_options(num_warps=4))
    assert_fits(built, kilobytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ON_A_GPU)
def test_gpu(name: str) -> None:
    ON_A_GPU[name](device="cuda")


if __name__ == "__main__":
    report({name: partial(check, device="cpu") for name, check in CHECKS.items()})
