"""What was measured, on a model's card on the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.cards import add_exposure_to_card
from hf_exposure.utils.hub import RefusedError, one_error
from hf_exposure.utils.typed import typed

TRIES = 3  # to add to a card that somebody else is changing
_CHANGED = (409, 412)  # statuses of a commit onto what is no longer the latest one


@typed
def push_exposure(
    repo_id: str,
    exposures: Exposures | None = None,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add exposure of inserted secrets",
    **parts: Any,
) -> str:
    """Add what was measured to the card of a model on the Hub; see `add_exposure_to_card`.

    All other lines of the card stay as they are, those too that somebody else changes meanwhile.

    Args:
        repo_id: the model's repository, "owner/name".
        exposures: what was measured.
        token: a Hub token; None takes the one that is logged in.
        revision: the branch whose card it is.
        create_pr: as a pull request.
        commit_message: the commit's title.
        parts: `extractions`, `generations`, `history`, `per_canary` and `model_name` of
            `add_exposure_to_card`.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        RuntimeError: the Hub could not be reached or has refused, or the card is not valid there.
        ValueError: nothing was measured, or the card's metadata cannot be read.
    """
    # What is wrong with them is said before the Hub is asked.
    add_exposure_to_card(ModelCard("---\n{}\n---\n"), exposures, **parts)
    api = HfApi(token=token)
    what = f"add to the card of {repo_id!r}"
    parts.setdefault("model_name", repo_id.split("/")[-1])
    for tries_left in reversed(range(TRIES)):
        with one_error(what), tempfile.TemporaryDirectory() as folder:
            latest = api.model_info(repo_id, revision=revision).sha
            path = Path(folder) / "README.md"
            try:
                found = hf_hub_download(repo_id, path.name, revision=latest, token=token)
                path.write_bytes(Path(found).read_bytes())
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
            try:
                add_exposure_to_card(path, exposures, **parts)
            except ValueError as error:
                said = str(error).replace(repr(str(path)), f"the card of {repo_id!r}")
                raise RefusedError(said) from None
            try:
                done = api.create_commit(
                    repo_id,
                    [CommitOperationAdd(path.name, path.read_bytes())],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                    parent_commit=latest,
                )
            except HfHubHTTPError as error:
                if tries_left and error.response.status_code in _CHANGED:
                    continue
                raise
            return str(done.pr_url if create_pr else done.commit_url)
    raise AssertionError("the last try returns or raises")
