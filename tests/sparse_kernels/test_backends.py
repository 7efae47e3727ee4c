"""A warning names the line of whoever called the operator, not one of ours."""

import subprocess
import sys

CALLS = """
import warnings
import torch
from sparse_kernels import _extension, block_mass, centroid_log_error, fill_budget, kmeans
from sparse_kernels import merge_centroids, rank_entries
from sparse_kernels.points import farthest_point_sampling
from sparse_kernels.sparse_conv import sparse_conv, strided_map, submanifold_map
from sparse_kernels.spike_conv import spike_conv

_extension.load = lambda: "no C++ compiler was found"
x, scores = torch.rand(1, 1, 9, 4), torch.rand(2, 5)
clusters = kmeans(x, x[:, :, :2].clone(), iterations=1, backend="reference")
offsets, lse = torch.tensor([0, 4, 9]), torch.zeros(1, 1, 9)
kernel_map = submanifold_map(torch.tensor([[0, 1], [0, 2]]), (5,), 3)
spikes, weight = torch.ones(2, 3), torch.rand(4, 3, 3)
for call in (
    lambda: rank_entries(scores),
    lambda: fill_budget(scores, torch.ones(2, 5, dtype=torch.int64), 3),
    lambda: kmeans(x, x[:, :, :2].clone(), iterations=1),
    lambda: block_mass(x, x, lse, offsets, offsets),
    lambda: centroid_log_error(clusters.centroids, x, x, clusters, clusters.centroids, scale=1.0),
    lambda: merge_centroids(x, x, lse, clusters, torch.zeros(1, 1, 2, 2), *[clusters.centroids] * 2, scale=1.0),
    lambda: farthest_point_sampling(x[0, 0], offsets, 2),
    lambda: sparse_conv(spikes, weight, kernel_map),
    lambda: submanifold_map(torch.tensor([[0, 1], [0, 2]]), (5,), 3),
    lambda: strided_map(torch.tensor([[0, 1], [0, 2]]), (5,), 3),
    lambda: spike_conv(spikes, weight, kernel_map),
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    print([(warning.filename, call.__code__.co_firstlineno == warning.lineno) for warning in caught])
"""


def test_a_warning_names_the_users_line() -> None:
    """In a process of its own: here the checks of signatures stand between the functions."""
    process = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [str([("<string>", True)])] * 11
