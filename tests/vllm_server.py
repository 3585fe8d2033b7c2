"""A real vLLM server on this machine, started from an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

NAME = "public"
_START = 600.0  # seconds; on two busy cores it takes 60 to 120


def start(
    executable: str, folder: Path, log: Path, port: int = 0
) -> tuple[subprocess.Popen[bytes], str]:
    """A server of its own processes, and its address once it answers.

    Args:
        executable: the program `vllm` of its environment.
        folder: weights and tokenizer.
        log: where its words go.
        port: 0 takes a free one.
    """
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [executable, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "512", "--served-model-name", NAME]
    # So that its cache of prefixes serves short prompts: on CPUs a block has 128 tokens by default.
    command += ["--block-size", "32"]
    threads = str(os.cpu_count())
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": threads}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*command, "--enable-prompt-tokens-details"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | more,
            start_new_session=True,  # its processes end together
        )
    deadline = time.monotonic() + _START
    while not _healthy(port):
        if process.poll() is not None or time.monotonic() > deadline:
            end(process)
            said = log.read_text("utf-8", "replace").splitlines()[-30:]
            raise RuntimeError("vLLM has not started:\n" + "\n".join(said))
        time.sleep(0.5)
    return process, f"http://127.0.0.1:{port}/v1"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its workers, as a crash would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _healthy(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    except requests.RequestException:
        return False
