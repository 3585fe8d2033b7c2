"""The GPU benchmark runs on a CPU, with PyTorch and transformers and little else installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.processes import finished

ROOT = Path(__file__).parents[2]
ABSENT = ("datasets", "evaluate", "accelerate", "matplotlib", "pandas")


@pytest.mark.slow
def test_it_runs_from_the_checkout_without_what_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    script = f"""if True:
        import runpy, sys
        sys.modules.update(dict.fromkeys({ABSENT!r}))
        sys.argv = ["gpu.py", "--smoke", "--json", "figures.json"]
        runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
    """
    done = finished([sys.executable, "-I", "-c", script], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) == {"host", "demo", "sizes", "eight-bit"}
    walks = figures["host"][:2]
    assert all(1_990 <= row["token-forwards"] <= 2_000 for row in walks), walks
    assert all(row["µs outside, a row"] > 0 for row in figures["host"])
    (demo,) = figures["demo"]
    assert demo["x16"] > demo["x0"] and demo["log-perplexities apart by, bits"] == 0
    (size,) = figures["sizes"]
    assert size["rows that fit"] == 64 and 0 < size["share outside the model"] < 1
    assert f"| walk, depth first | {walks[0]['token-forwards']:,} |" in done.stdout
