"""What was measured, on a model's card on the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from hf_exposure.attacks.extraction import Extractions
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.card_text import change_card
from hf_exposure.reports.cards import card_parts
from hf_exposure.utils.hub import RefusedError, one_error
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from hf_exposure.attacks.generations import Generations
    from hf_exposure.exposure.history import History

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
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    history: History | None = None,
    per_canary: bool = False,
    model_name: str | None = None,
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
        extractions, generations, history, per_canary: as `add_exposure_to_card` has them.
        model_name: for the metadata of a card without results; None takes the card's, or the
            repository's name.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        RuntimeError: the Hub could not be reached or has refused, or the card is not valid there.
        ValueError: nothing was measured, or the card's metadata cannot be read.
    """
    new = card_parts("push_exposure", exposures, extractions, generations, history, per_canary)
    api = HfApi(token=token)
    what = f"add to the card of {repo_id!r}"
    name = model_name or repo_id.split("/")[-1]
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
                change_card("push_exposure", path, *new, name)
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
