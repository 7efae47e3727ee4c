"""Networks on events need no spconv, which has no wheels for many machines."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import sys
sys.modules["spconv"] = None
from pointcloud.cli import app
from pointcloud.nn import unroll
from pointcloud.spikepoint.evaluation import evaluate
from pointcloud.spikepoint.shipped import load_events_network
from pointcloud.spikepoint.training import Trainer
print(evaluate(unroll(load_events_network("spikepoint-tiny")), 1, report=lambda line: None).nanojoules > 0)
try:
    from pointcloud.nn import SubMConv3d
except ModuleNotFoundError as error:
    print(error.name.split(".")[0])
"""


def test_events_are_classified_and_metered_without_spconv() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "spconv"], done.stderr
