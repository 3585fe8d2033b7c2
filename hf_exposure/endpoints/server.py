"""Requests to a server: new attempts after passing faults, and errors in words, without the key.

A busy server is asked again after growing pauses, by urllib3. One that had been there and is gone
is waited for, for minutes, as servers need them to start. Several addresses share the work.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util.retry import Retry

from hf_exposure.utils.warn import warn

_BACKOFF = 0.5  # seconds; the pauses are 0, 2, 4, 8 ... times as long
_LONGEST = 600.0  # the longest that a server may ask us to wait
_LOOK = 2.0  # seconds between two looks for a server that is gone
_GONE = (429, 502, 503, 504)  # of a server that starts, or that others wait for too
_FAULTS = (500, *_GONE)
_SHOWN = 1000  # characters; a longer message is left out, since half a secret is not masked


class RefusedError(Exception):
    """The server is there, but does not want this request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _GoneError(ConnectionError):
    """The server cannot be reached now, or asks to come later."""


class _Pauses(Retry):
    """New attempts, but none where the server asks for a longer wait than anyone would."""

    def increment(self, *arguments: Any, **named: Any) -> Any:
        response = named.get("response")
        if response is not None and _asked_to_wait(response.headers) > _LONGEST:
            raise MaxRetryError(named["_pool"], "", None)
        return super().increment(*arguments, **named)


class _Bearer(AuthBase):
    """The key of an endpoint. A header of our own would give way to one from ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def hide(self, text: str) -> str:
        return text.replace(self._key, "***")


class Address:
    """One address of a server, as it is asked and as it is shown.

    Attributes:
        base, root: before "/completions", and the same without "/v1".
        url: for messages, without a password.
        busy, answered: requests under way there, and answered so far.
        reached: whether it has ever answered.
        until: when to try it again after it was gone.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(
                "CompletionsScorer: base_url is no address to put '/completions' behind; give one "
                "such as 'http://localhost:8000/v1'"
            )
        self.base = base_url.rstrip("/").removesuffix("/completions")
        self.root = self.base.removesuffix("/v1")
        host = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{host}{urlsplit(self.base).path}"
        self.busy = self.answered = 0
        self.reached, self.until = False, 0.0


class Server:
    """A completions endpoint; for the arguments see `CompletionsScorer`.

    Attributes:
        url: its first address for messages, without a password.
        addresses: all of them.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        api_key: str | None,
        workers: int,
        timeout: float,
        retries: int,
        patience: float,
    ) -> None:
        given = [base_url] if isinstance(base_url, str) else list(base_url)
        if not given:
            raise ValueError("CompletionsScorer: base_url is empty; give at least one address")
        self.addresses = [Address(one) for one in given]
        self.url = self.addresses[0].url
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError(
                "CompletionsScorer: api_key holds a line break or another character that no key "
                "has; strip it"
            )
        self.model, self.timeout, self.patience = model, timeout, patience
        self._auth = _Bearer(api_key) if api_key else None
        # Not patient: a fault may be its way to refuse.
        self._sessions = {
            True: _session(workers, retries, _FAULTS),
            False: _session(workers, retries, _GONE),
        }
        self._lock = threading.Lock()
        self._told = False

    @property
    def answered(self) -> int:
        """Requests that were answered so far."""
        return sum(one.answered for one in self.addresses)

    def post(
        self, path: str, body: dict[str, Any], patient: bool = True, *, to: Address | None = None
    ) -> Any:
        """What the server answers to a body; see `ask`."""
        return self.ask("POST", path, body, patient, to=to)

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        patient: bool = True,
        *,
        to: Address | None = None,
    ) -> Any:
        """What the server answers.

        Args:
            path: behind the address, or behind what stands before its "/v1" if it begins with "/".
            patient: whether an internal fault is to be tried again, and not a refusal.
            to: the address to ask; None takes the one that has least to do.

        Raises:
            RefusedError: it does not want this.
            ConnectionError, PermissionError, ValueError: see `CompletionsScorer`.
        """
        deadline: float | None = None
        while True:
            address = to or self._least_busy()
            try:
                return self._once(address, method, path, body, patient)
            except _GoneError as error:
                now = time.monotonic()
                deadline = now + self.patience if deadline is None else deadline
                address.until = now + _LOOK
                others = [one for one in self.addresses if one.reached and one.until <= now]
                if not any(one.reached for one in self.addresses) or now >= deadline:
                    raise ConnectionError(str(error)) from None
                if to is not None or not others:
                    self._tell_once(error)
                    time.sleep(_LOOK)

    def _least_busy(self) -> Address:
        now = time.monotonic()
        with self._lock:
            # In turn among equals, and those that are gone only if all are.
            one = min(self.addresses, key=lambda one: (one.until > now, one.busy))
            self.addresses.remove(one)
            self.addresses.append(one)
        return one

    def _tell_once(self, error: Exception) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            warn(f"{error}; waiting up to {self.patience:g} s for it to come back")

    def _once(
        self, address: Address, method: str, path: str, body: dict[str, Any] | None, patient: bool
    ) -> Any:
        name = f"CompletionsScorer: {address.url}"
        with self._lock:
            address.busy += 1
        try:
            response = self._sessions[patient].request(
                method,
                f"{address.root}{path}" if path.startswith("/") else f"{address.base}/{path}",
                json=body,
                timeout=self.timeout,
                auth=self._auth,
                allow_redirects=False,  # a redirected POST becomes a GET
            )
        except requests.Timeout:
            raise ConnectionError(
                f"{name} does not answer within {self.timeout:g} s; raise timeout, or lower "
                "batch_size"
            ) from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            raise _GoneError(
                f"{name} cannot be reached, or breaks off; is the server running?"
            ) from None
        except requests.RequestException as error:
            raise ValueError(
                f"{name} cannot be asked ({type(error).__name__}); check base_url"
            ) from None
        finally:
            with self._lock:
                address.busy -= 1
        address.reached, address.until, self._told = True, 0.0, False
        status = response.status_code
        if status < 300:
            address.answered += 1
            return self._json(address, response)
        if status not in _FAULTS or (status == 500 and not patient):
            raise self._refusal(address, response)
        times = len(response.raw.retries.history) + 1 if response.raw.retries else 1
        trouble = f"{name} answers with {self._said(response)}, {times} times"
        wait = _asked_to_wait(response.headers)
        if wait > _LONGEST:
            raise ConnectionError(
                f"{trouble}, and asks to wait too long ({response.headers['Retry-After']})"
            )
        raise _GoneError(trouble) if status in _GONE else ConnectionError(trouble)

    def _json(self, address: Address, response: requests.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise ValueError(
                f"CompletionsScorer: {address.url} answers with something that is not JSON; is it "
                "a completions endpoint?"
            ) from None

    def _refusal(self, address: Address, response: requests.Response) -> Exception:
        """The error that stands for an answer which is none."""
        status = response.status_code
        if status in (401, 403):
            return PermissionError(
                f"CompletionsScorer: {address.url} does not accept the api_key "
                f"({self._said(response)}); give the one of this server"
            )
        if status == 404:
            offered = self._models(address)
            if offered is None:
                return ValueError(
                    f"CompletionsScorer: there is nothing at {address.url}/completions (404); "
                    "base_url mostly ends in '/v1'"
                )
            return ValueError(
                f"CompletionsScorer: model={self.model!r} is not at {address.url} (404); it offers "
                f"{', '.join(map(repr, offered)) or 'none'}"
            )
        if 300 <= status < 400:
            return ValueError(
                f"CompletionsScorer: {address.url} sends elsewhere ({status}); give the address "
                "that it leads to as base_url"
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

    def _models(self, address: Address) -> list[str] | None:
        """The models that the server offers; None if it does not say."""
        with contextlib.suppress(requests.RequestException, ValueError, TypeError, KeyError):
            response = self._sessions[True].get(
                f"{address.base}/models", timeout=self.timeout, auth=self._auth
            )
            if response.status_code == 200:
                return [str(one["id"]) for one in response.json()["data"]]
        return None


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds, which are given as a number or as a date; 0 where nothing sensible is."""
    try:
        return Retry().parse_retry_after(headers.get("Retry-After") or "0")
    except InvalidHeader:
        return 0.0


def _session(workers: int, retries: int, statuses: Sequence[int]) -> requests.Session:
    """Connections that try again after these statuses, or when the server asks to."""
    session = requests.Session()
    pauses = _Pauses(
        total=None,
        connect=0,
        read=False,
        status=retries,
        status_forcelist=statuses,
        allowed_methods=None,
        backoff_factor=_BACKOFF,
        backoff_max=60,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=workers, max_retries=pauses))
    return session
