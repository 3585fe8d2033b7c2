"""Requests to a server: new attempts after passing faults, and errors in words, without the key."""

from __future__ import annotations

import contextlib
import email.utils
import math
import time
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

_BACKOFF = 0.5  # seconds before the first new attempt, twice as many before each further one
_PATIENCE = 600.0  # the longest that a server may ask us to wait
_RETRIED = (429, 500, 502, 503, 504)
_SHOWN = 1000  # characters; a longer message is left out, since half a secret is not masked


class RefusedError(Exception):
    """The server is there, but does not want this request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Bearer(AuthBase):
    """The key of an endpoint. A header of our own would give way to one from ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def hide(self, text: str) -> str:
        return text.replace(self._key, "***")


class Server:
    """A completions endpoint; for the arguments see `CompletionsScorer`.

    Attributes:
        url: its address for messages, without a password.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None,
        workers: int,
        timeout: float,
        retries: int,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                "CompletionsScorer: base_url is no address to put '/completions' behind; give one "
                "such as 'http://localhost:8000/v1'"
            )
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError(
                "CompletionsScorer: api_key holds a line break or another character that no key "
                "has; strip it"
            )
        self._base = base_url.rstrip("/").removesuffix("/completions")
        # For messages: an address may hold a password.
        host = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{host}{urlsplit(self._base).path}"
        self.model, self.timeout, self.retries = model, timeout, retries
        self._auth = _Bearer(api_key) if api_key else None
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=workers))
        self._reached = False

    def post(self, body: dict[str, Any], patient: bool) -> Any:
        """What the server answers. Not `patient`: a fault may be its way to refuse."""
        for attempt in range(self.retries + 1):
            wait = _BACKOFF * 2**attempt
            try:
                response = self._session.post(
                    f"{self._base}/completions",
                    json=body,
                    timeout=self.timeout,
                    auth=self._auth,
                    allow_redirects=False,  # a redirected POST becomes a GET
                )
            except requests.Timeout:
                trouble = (
                    f"does not answer within {self.timeout:g} s; raise timeout, or lower batch_size"
                )
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                trouble = "cannot be reached, or breaks off; is the server running?"
            except requests.RequestException as error:
                raise ValueError(
                    f"CompletionsScorer: {self.url} cannot be asked ({type(error).__name__}); "
                    "check base_url"
                ) from None
            else:
                self._reached = True
                status = response.status_code
                if status < 300:
                    return self._json(response)
                if status not in _RETRIED or (status == 500 and not patient):
                    raise self._refusal(response)
                trouble = f"answers with {self._said(response)}, {attempt + 1} times"
                wait = max(wait, _retry_after(response))
                if wait > _PATIENCE:
                    trouble += f", and asks to wait for {wait:.0f} s"
                    break
            if not self._reached:
                break
            if attempt < self.retries:
                time.sleep(wait)
        raise ConnectionError(f"CompletionsScorer: {self.url} {trouble}") from None

    def _json(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise ValueError(
                f"CompletionsScorer: {self.url} answers with something that is not JSON; is it a "
                "completions endpoint?"
            ) from None

    def _refusal(self, response: requests.Response) -> Exception:
        """The error that stands for an answer which is none."""
        status = response.status_code
        if status in (401, 403):
            return PermissionError(
                f"CompletionsScorer: {self.url} does not accept the api_key "
                f"({self._said(response)}); give the one of this server"
            )
        if status == 404:
            offered = self._models()
            if offered is None:
                return ValueError(
                    f"CompletionsScorer: there is nothing at {self.url}/completions (404); "
                    "base_url mostly ends in '/v1'"
                )
            return ValueError(
                f"CompletionsScorer: model={self.model!r} is not at {self.url} (404); it offers "
                f"{', '.join(map(repr, offered)) or 'none'}"
            )
        if 300 <= status < 400:
            return ValueError(
                f"CompletionsScorer: {self.url} sends elsewhere ({status}); give the address that "
                "it leads to as base_url"
            )
        return RefusedError(status, f"it refuses the request with {self._said(response)}")

    def _said(self, response: requests.Response) -> str:
        """Status and message of an error, without the key. Pages of HTML are left out."""
        said: Any = None
        with contextlib.suppress(ValueError):
            said = response.json()
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        text = " ".join(said.split()) if isinstance(said, str) and len(said) <= _SHOWN else ""
        text = self._auth.hide(text) if self._auth else text
        return f"{response.status_code}{': ' if text else ''}{text}"

    def _models(self) -> list[str] | None:
        """The models that the server offers; None if it does not say."""
        with contextlib.suppress(requests.RequestException, ValueError, TypeError, KeyError):
            response = self._session.get(
                f"{self._base}/models", timeout=self.timeout, auth=self._auth
            )
            if response.status_code == 200:
                return [str(one["id"]) for one in response.json()["data"]]
        return None


def _retry_after(response: requests.Response) -> float:
    """Seconds that a server asks to wait, given as a number or as a date."""
    asked = response.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
