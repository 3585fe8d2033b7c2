"""`hf exposure`: what `hf extensions install OWNER/hf-exposure` asks of a repository, and the run.

The installation itself (a virtual environment, and pip with an archive from GitHub) needs the
network. What it leaves behind is laid out here, and the library's own `hf` finds and runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import distribution
from pathlib import Path

import pytest

extensions = pytest.importorskip(
    "huggingface_hub.cli.extensions"
)  # since huggingface_hub 1.5 or so

ROOT = Path(__file__).parents[2]
OWNER, REPO, SHORT = "somebody", "hf-exposure", "exposure"
SCRIPTS = Path(sys.executable).parent


def test_the_package_has_the_console_script_that_the_repository_s_name_asks_for() -> None:
    assert extensions._normalize_repo_id(f"{OWNER}/{REPO}") == (OWNER, REPO, SHORT)
    wanted = extensions._get_executable_name(SHORT).removesuffix(".exe")
    package = distribution("hf-exposure")
    (script,) = package.entry_points.select(group="console_scripts", name=wanted)
    assert script.value == "hf_exposure.cli:main"
    assert extensions._get_venv_bin_path(SCRIPTS.parent, wanted).is_file()


def test_nothing_in_the_repository_makes_it_another_kind_of_extension() -> None:
    # A file of that name in its root would be taken for a shell script, and installed instead.
    assert not (ROOT / extensions._get_executable_name(SHORT)).exists()
    assert not (ROOT / extensions.MANIFEST_FILENAME).exists()  # where it would look for words first
    # Then come the first words of pyproject.toml after "description".
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if line.strip().startswith("description"))
    assert "memorized" in first.partition("=")[2]


def test_hf_has_no_command_of_that_name() -> None:
    from huggingface_hub.cli.hf import app

    known = {name.strip() for command in app.commands for name in command.split("|")}
    assert known >= {"auth", "extensions"} and SHORT not in known


@pytest.mark.slow
def test_hf_exposure_runs_hf_exposure(tmp_path: Path) -> None:
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / REPO
    extensions.ExtensionManifest(
        owner=OWNER,
        repo=REPO,
        repo_id=f"{OWNER}/{REPO}",
        short_name=SHORT,
        executable_path=str(SCRIPTS / REPO),
        type="python",
        installed_at=datetime.now(timezone.utc),
        description="How much has it memorized?",
    ).save(folder)
    environ = {
        **os.environ,
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "100",
    }

    def hf(*arguments: str) -> str:
        done = subprocess.run(
            [SCRIPTS / "hf", *arguments], env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout

    asked = hf(SHORT, "--help")
    own = subprocess.run(
        [SCRIPTS / REPO, "--help"], env=environ, capture_output=True, text=True, check=True
    )
    assert "measure" in asked and asked == own.stdout
    assert f"[extension {OWNER}/{REPO}]" in hf("--help")
    missing = subprocess.run(
        [SCRIPTS / "hf", SHORT, "measure"], env=environ, capture_output=True, text=True
    )
    # Its words and its exit code come through.
    assert missing.returncode == 2 and "hf-exposure measure" in missing.stderr
