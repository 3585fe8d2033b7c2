"""Canary sets on the Hub, as private data sets.

An upload is one commit, so that a repository never holds half of a set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.masking import mask_secrets
from hf_exposure.utils.escapes import code_span
from hf_exposure.utils.hub import one_error
from hf_exposure.utils.warn import warn
from hf_exposure.utils.words import times as often

MANIFEST = "canaries.json"
ROWS = "canaries.jsonl"


def upload_manifest(
    canaries: Sequence[Canary],
    manifest: str,
    card: Callable[[str, bool], str],
    repo_id: str,
    private: bool,
    token: str | bool | None,
    revision: str | None,
    commit_message: str,
    reveal: bool,
) -> str:
    """Upload a manifest as a data set repository, with a card.

    Args:
        canaries: those of the manifest: masked in errors, and the rows for the data set viewer.
        manifest: its text, secrets too.
        card: gives the README.md for the repository's full name, with the secrets or without.
        private, token, revision, commit_message, reveal: see `Canaries.push_to_hub`.
    """
    api = HfApi(token=token)
    what = f"push the canaries to {repo_id!r}"

    def mask(text: str) -> str:
        return mask_secrets(text, canaries)

    with one_error(what, mask):
        created = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        name = created.repo_id
        public = not api.dataset_info(name).private
    if public and private:
        raise RuntimeError(
            f"could not {what}: the repository is there and is public, and secrets that anyone may "
            "have read and trained on measure nothing any more; make it private, name another one, "
            "or publish them with private=False"
        )
    if public:
        warn(
            f"{name} is public: secrets that anyone may have read and trained on measure nothing "
            "any more, so do not test with these canaries again",
        )
    files = {MANIFEST: manifest, "README.md": card(name, reveal)}
    if reveal:
        rows = [
            {"text": one.text, "secret": one.secret, "repetitions": one.repetitions}
            for one in canaries
        ]
        files[ROWS] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with one_error(what, mask):
        done = api.create_commit(
            name,
            [CommitOperationAdd(path, text.encode()) for path, text in files.items()],
            commit_message=commit_message,
            repo_type="dataset",
            revision=revision,
        )
    return str(done.commit_url)


def download_manifest(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """The file that `upload_manifest` has uploaded.

    Raises:
        RuntimeError: the Hub could not be reached, has refused, or has no such set.
    """
    missing = f"the repository has no {MANIFEST}, so Canaries.push_to_hub has not made it"
    with one_error(f"load canaries from {repo_id!r}", missing=missing):
        return Path(
            hf_hub_download(repo_id, MANIFEST, repo_type="dataset", revision=revision, token=token)
        )


def dataset_card(
    canaries: Sequence[Canary],
    repo_id: str,
    seed: int | None,
    inclusion: str,
    insertions: Sequence[Insertion],
    reveal: bool,
) -> str:
    """The README.md of a canary set's repository; it shows no secret unless `reveal`."""
    counts = sorted(Counter(one.repetitions for one in canaries).items())
    groups = [
        f"{number} never inserted" if not times else f"{number} inserted {often(times)}"
        for times, number in counts
    ]
    metadata = ["---", "tags:", "- canaries", "- memorization", "- hf-exposure"]
    if reveal:
        metadata += ["configs:", "- config_name: default", f"  data_files: {ROWS}"]
    else:
        metadata.append("viewer: false")
    lines = [
        *metadata,
        "---",
        f"# {repo_id.split('/')[-1]}",
        "",
        "Canaries: random secrets, inserted into a training corpus to find out how much a model "
        "that was trained on it has memorized (Carlini et al., *The Secret Sharer*, USENIX "
        "Security 2019). Made with hf-exposure.",
        "",
        "**Keep it private**: the manifest holds the secrets. Who trains on them makes every later "
        "measurement with them worthless.",
        "",
        f"- {len(canaries)} canaries: {', '.join(groups)}",
        "- put together by hand" if seed is None else "- drawn from a seed, which the manifest has",
    ]
    if inclusion == "coin":
        lines.append("- each left in or out by a fair coin")
    for fmt in dict.fromkeys(one.format for one in canaries):
        check = f", check {fmt.check}" if fmt.check else ""
        named = f"{code_span(fmt.template)} with {code_span(fmt.secret)}{check}"
        lines.append(f"- format: {named}: {fmt.bits:.1f} bits")
    for one in insertions:
        shown = one.shown(seed).items()
        told = ", ".join(f"{name}: {code_span(str(value))}" for name, value in shown)
        lines.append(f"- inserted: {told}")
    if not insertions:
        lines.append("- not inserted yet, as far as the manifest knows")
    if reveal:
        lines += ["", "| canary | inserted |", "|---|---:|"]
        lines += [f"| {code_span(one.text, cell=True)} | {one.repetitions} |" for one in canaries]
    lines += [
        "",
        "```python",
        "from hf_exposure import Canaries, measure_exposure",
        "",
        f'canaries = Canaries.from_hub("{repo_id}")',
        "print(measure_exposure(model, tokenizer, canaries))",
        "```",
        "",
    ]
    return "\n".join(lines)
