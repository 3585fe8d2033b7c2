"""The Hugging Face Hub: canary sets as private data sets, and what was measured on a model's card.

Uploads are one commit each, so that a repository never holds half of one; what is pushed stays on
this machine too, whatever goes wrong on the way.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_exposure.canaries import Canaries, Canary
from hf_exposure.cards import add_exposure_to_card
from hf_exposure.extraction import times as often
from hf_exposure.masking import mask_secrets
from hf_exposure.results import Exposures

__all__ = ["add_exposure_to_card", "card_for", "load_canaries", "push_canaries", "push_exposure"]

MANIFEST = "canaries.json"
ROWS = "canaries.jsonl"
TRIES = 3  # to add to a card that somebody else is changing
_EXPECTED = (OSError, ValueError, RuntimeError, EntryNotFoundError, KeyError)
_CHANGED = (409, 412)  # statuses of a commit onto what is no longer the latest one


def push_canaries(
    canaries: Canaries,
    repo_id: str,
    *,
    private: bool = True,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload canaries",
    reveal: bool = False,
) -> str:
    """Upload a canary set as a data set repository, with a card.

    The manifest is uploaded whole, secrets too: whoever can read the repository can read them. The
    card tells what was planted, where and with which seed, and shows no secret unless `reveal`.

    Args:
        private: of a new repository. An existing one stays what it is; if that is public, nothing
            is uploaded unless this is False.
        token: a Hub token; None takes the one that is logged in.
        revision: a branch to commit to, which must be there.
        reveal: show the secrets in the card, and add a file of rows for the data set viewer.

    Returns:
        The address of the commit.

    Raises:
        RuntimeError: the Hub could not be reached or has refused, or the repository is public and
            `private` is not False; the message says why.
    """
    api = HfApi(token=token)
    what = f"push the canaries to {repo_id!r}"
    with _one_error(what, canaries):
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
        warnings.warn(
            f"{name} is public: secrets that anyone may have read and trained on measure nothing "
            "any more, so do not test with these canaries again",
            stacklevel=3,
        )
    with _one_error(what, canaries):
        operations = [
            CommitOperationAdd(MANIFEST, canaries.to_json().encode()),
            CommitOperationAdd("README.md", card_for(canaries, name, reveal=reveal).encode()),
        ]
        if reveal:
            rows = [
                {"text": one.text, "secret": one.secret, "repetitions": one.repetitions}
                for one in canaries
            ]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            operations.append(CommitOperationAdd(ROWS, lines.encode()))
        done = api.create_commit(
            name,
            operations,
            commit_message=commit_message,
            repo_type="dataset",
            revision=revision,
        )
    return str(done.commit_url)


def load_canaries(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Canaries:
    """The canary set that `push_canaries` has uploaded.

    Args:
        revision: a branch, tag or commit.

    Raises:
        RuntimeError: the Hub could not be reached, has refused, or has no such set.
        ValueError: the file there is no manifest of canaries.
    """
    with _one_error(f"load canaries from {repo_id!r}"):
        path = hf_hub_download(
            repo_id, MANIFEST, repo_type="dataset", revision=revision, token=token
        )
    return Canaries.load(path)


def push_exposure(
    repo_id: str,
    exposures: Exposures | None = None,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add exposure of planted secrets",
    **parts: Any,
) -> str:
    """Add what was measured to the card of a model on the Hub; see `add_exposure_to_card`.

    All other lines of the card stay as they are, those too that somebody else changes meanwhile.

    Args:
        revision: the branch whose card it is.
        create_pr: as a pull request.
        parts: `extractions`, `generations`, `history` and `model_name` of `add_exposure_to_card`.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        RuntimeError: the Hub could not be reached or has refused, or the card is not valid there.
        ValueError: nothing was measured, or the card's metadata cannot be read.
    """
    api = HfApi(token=token)
    what = f"add to the card of {repo_id!r}"
    parts.setdefault("model_name", repo_id.split("/")[-1])
    for tries_left in reversed(range(TRIES)):
        with _one_error(what), tempfile.TemporaryDirectory() as folder:
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
                raise _Refused(said) from None
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


class _Refused(Exception):
    """A ValueError that is to pass as it is."""


def card_for(canaries: Canaries, repo_id: str, reveal: bool = False) -> str:
    """The README.md of a canary set's repository; it shows no secret unless `reveal`."""
    counts = sorted(Counter(one.repetitions for one in canaries).items())
    groups = [
        f"{number} never planted" if not times else f"{number} planted {often(times)}"
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
        "Canaries: random secrets, planted in a training corpus to find out how much a model that "
        "was trained on it has memorized (Carlini et al., *The Secret Sharer*, USENIX Security "
        "2019). Made with hf-exposure.",
        "",
        "**Keep it private**, this card too: a format and its seed are enough to draw the same "
        "secrets again. Who trains on them makes every later measurement with them worthless.",
        "",
        f"- {len(canaries)} canaries: {', '.join(groups)}",
        "- seed: "
        + ("none, put together by hand" if canaries.seed is None else f"{canaries.seed}")
        + ("; each left in or out by a fair coin" if canaries.inclusion == "coin" else ""),
    ]
    for fmt in canaries.formats:
        check = f", check {fmt.check}" if fmt.check else ""
        named = f"{_code(fmt.template)} with {_code(fmt.secret)}{check}"
        lines.append(f"- format: {named}: {fmt.bits:.1f} bits")
    known = {name: value for name, value in canaries.planting.items() if value is not None}
    if known:
        told = ", ".join(f"{name}: {_code(str(value))}" for name, value in known.items())
        lines.append(f"- planted: {told}")
    else:
        lines.append("- not planted yet, as far as the manifest knows")
    if reveal:
        lines += ["", "| canary | planted |", "|---|---:|"]
        lines += [
            f"| {_code(one.text).replace('|', chr(92) + '|')} | {one.repetitions} |"
            for one in canaries
        ]
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


def _code(text: str) -> str:
    """Text as a code span in a line of Markdown."""
    plain = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    marks = "`" * (longest + 1)
    space = " " if longest or plain != plain.strip() else ""
    return f"{marks}{space}{plain}{space}{marks}"


@contextmanager
def _one_error(what: str, canaries: Iterable[Canary] = ()) -> Iterator[None]:
    """Whatever the Hub's client raises as one sentence without secrets; retries are its own."""
    try:
        yield
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        if not isinstance(error, _EXPECTED) and not _of_the_connection(error):
            raise
        said = mask_secrets(_reason(error), canaries)
        raise RuntimeError(f"could not {what}: {said}") from None


def _reason(error: Exception) -> str:
    """What went wrong, and what to do."""
    if isinstance(error, GatedRepoError):
        return "access to the repository has to be asked for on its page"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private and the token does not reach it; check "
            "the name, and log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision there"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return f"the Hub cannot be reached ({_line(cause)}); try again later"
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no {MANIFEST}, so Canaries.push_to_hub has not made it"
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        hint = {
            401: "; log in with `hf auth login`, or give token=",
            403: "; the token may not write there",
            409: "; somebody else has changed it meanwhile: try again",
            412: "; somebody else has changed it meanwhile: try again",
            507: "; there is no room left there",
        }.get(code, "; try again later" if code >= 500 else "")
        # What the server itself says stands below in the error's own text.
        said = " ".join((error.server_message or "").split())[:200].rstrip(".:")
        return f"the Hub answers {code} ({said or _line(error)}){hint}"
    if isinstance(error.__cause__, Exception) and type(error) is RuntimeError:
        return _reason(error.__cause__)  # of the upload of a large file
    if isinstance(error, ValueError):  # a name, or a card, that is not valid there
        return " ".join(str(error).split())[:500]
    if isinstance(error, KeyError):
        return f"the Hub's answer has no {error}; try again later"
    if _of_the_connection(error):
        return f"the Hub cannot be reached ({_line(error)}); try again later"
    return _line(error)


def _of_the_connection(error: Exception) -> bool:
    """Whether it is one of the client's HTTP library, which has a family of its own."""
    return type(error).__module__.split(".")[0].startswith(("httpx", "httpcore"))


def _line(error: BaseException) -> str:
    """The first line of a message that may go on at length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
