"""What the Hub's client raises, as one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_exposure.utils.names import raise_alone

_EXPECTED = (OSError, ValueError, RuntimeError, EntryNotFoundError, KeyError)


class RefusedError(Exception):
    """A ValueError that is to pass as it is."""


@contextmanager
def one_error(what: str, mask: Callable[[str], str] = str, missing: str = "") -> Iterator[None]:
    """Whatever the Hub's client raises as one sentence; retries are its own.

    Args:
        what: what was tried, for the sentence.
        mask: takes secrets out of what the client says.
        missing: what it means that a file is not there, if that can be told.

    Raises:
        RuntimeError: the sentence.
    """
    try:
        yield
        return
    except RefusedError as error:
        out: Exception = ValueError(mask(str(error)))
    except Exception as error:
        if not isinstance(error, _EXPECTED) and not _of_the_connection(error):
            raise
        out = RuntimeError(f"could not {what}: {_reason(error, mask, missing)}")
    raise_alone(out)


def _reason(error: Exception, mask: Callable[[str], str], missing: str = "") -> str:
    """What went wrong, and what to do. What the client says is masked before it is cut."""
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
        return f"the Hub cannot be reached ({_line(cause, mask)}); try again later"
    if isinstance(error, EntryNotFoundError):
        return missing or f"the repository has no such file: {_line(error, mask)}"
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
        said = " ".join(mask(error.server_message or "").split())[:200].rstrip(".:")
        return f"the Hub answers {code} ({said or _line(error, mask)}){hint}"
    if isinstance(error.__cause__, Exception) and type(error) is RuntimeError:
        return _reason(error.__cause__, mask, missing)  # of the upload of a large file
    if isinstance(error, ValueError):  # a name, or a card, that is not valid there
        return " ".join(mask(str(error)).split())[:500]
    if isinstance(error, KeyError):
        return f"the Hub's answer has no {mask(str(error))}; try again later"
    if _of_the_connection(error):
        return f"the Hub cannot be reached ({_line(error, mask)}); try again later"
    return _line(error, mask)


def _of_the_connection(error: Exception) -> bool:
    """Whether it is one of the client's HTTP library, which has a family of its own."""
    return type(error).__module__.split(".")[0].startswith(("httpx", "httpcore"))


def _line(error: BaseException, mask: Callable[[str], str]) -> str:
    """The first line of a message that may go on at length."""
    lines = [line.strip() for line in mask(str(error)).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
