"""A completions endpoint on this machine that serves a tiny model, in the dialects of real ones.

What each dialect does was read in the sources of the servers (vLLM's `completion/serving.py`,
llama-cpp-python's `llama.py` and `server/app.py`, SGLang's tests of `/generate`), and the form of
vLLM's answers was copied from vLLM 0.32. In `tests/next_token_answers.py` it tells of chosen next
tokens.

- "openai": OpenAI's legacy API.
- "vllm": `prompt_logprobs` and `echo`, chosen next tokens, and 20 log-probabilities at most.
- "vllm-echo": `echo` alone, as of old.
- "sglang": as "openai", and chosen next tokens.
- "llama-cpp": llama-cpp-python.
- "content": a list of what was written, as llama.cpp's server; nothing of the prompt.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_exposure import Canaries, Canary, SecretFormat
from tests import next_token_answers

FORMAT = SecretFormat("the random number is {secret}.", secret="[0-9]{2}")
CANARIES = Canaries([Canary(FORMAT, "28", 4), Canary(FORMAT, "90", 1), Canary(FORMAT, "55", 0)])
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
DIALECTS = ("openai", "vllm-echo", "vllm", "llama-cpp")
OWNERS = {"vllm": "vllm", "sglang": "sglang"}  # what these servers say of their models
Prompt = str | tuple[int, ...]
Answer = tuple[int, dict[str, str], bytes]


def as_json(answer: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


class Refusal(Exception):
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.answer: Answer = (
            status,
            headers or {},
            json.dumps({"error": {"message": message}}).encode(),
        )


@dataclass(frozen=True)
class Scored:
    """A text's tokens with what the model says of them; row i is what it says after token i.

    Attributes:
        ids, special: (n,) tokens, and whether they are special.
        next_value, next_rank: (n - 1,) log-probability and rank of token i + 1 in row i.
        own_value: (n,) log-probability of token i in row i, of another place than its own.
        top, top_value: (n,) the likeliest token of row i.
        last: (V,) log-probabilities after the last token.
    """

    ids: list[int]
    special: list[int]
    next_value: list[float]
    next_rank: list[int]
    own_value: list[float]
    top: list[int]
    top_value: list[float]
    last: torch.Tensor


class Endpoint:
    """Serves until the `with` block ends.

    Attributes:
        faults: answered first, one for each request.
        change: applied to every proper answer.
        delay: seconds before an answer.
        byte_offsets: count `text_offset` in bytes.
        memory: texts that the model has been run on.
        bodies: all requests, in the order in which they came.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        dialect: str = "openai",
        *,
        key: str | None = None,
        name: str = "tiny",
        change: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        byte_offsets: bool = False,
        context: int = 128,
        memory: dict[Prompt, Scored] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dialect = dialect
        self.key = key
        self.name = name
        self.change = change
        self.byte_offsets = byte_offsets
        self.context = context
        self.memory = {} if memory is None else memory
        self.decode = functools.cache(lambda token: self.tokenizer.decode([token]))
        self.delay = 0.0
        self.faults: list[Refusal | bytes] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Endpoint:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                models = {"object": "list", "data": [endpoint.card()]}
                if self.path == "/v1/models":
                    self.answer(200, {}, json.dumps(models).encode())
                else:
                    self.answer(404, {}, b"not found")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.bodies.append(body)
                    endpoint._at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._at_once)
                try:
                    time.sleep(endpoint.delay)
                    self.answer(*endpoint.respond(self.path, dict(self.headers), body))
                finally:
                    with endpoint._lock:
                        endpoint._at_once -= 1

            def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def respond(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        try:
            if self.faults:
                fault = self.faults.pop(0)
                if isinstance(fault, bytes):
                    return 200, {}, fault
                raise fault
            if self.key and headers.get("Authorization") != f"Bearer {self.key}":
                raise Refusal(401, f"Incorrect API key provided: {headers.get('Authorization')}")
            if path == "/tokenize" and self.dialect in OWNERS:
                return as_json(next_token_answers.tokenized(self, body))
            if path == "/generate" and self.dialect == "sglang":
                with self._lock:
                    answers = next_token_answers.generated(self, body)
                return as_json(self.change(answers) if self.change else answers)
            if path != "/v1/completions":
                return 404, {}, b"<html>not here</html>"
            if body["model"] != self.name:
                raise Refusal(404, f"The model `{body['model']}` does not exist.")
            prompts = self.prompts(body["prompt"])
            if self.dialect == "llama-cpp" and len(prompts) > 1:
                raise Refusal(500, "")  # `assert len(body.prompt) <= 1`
            with self._lock:
                choices = [self.choice(index, text, body) for index, text in enumerate(prompts)]
            answer = {
                "object": "text_completion",
                "choices": [choice for choice, _ in choices],
                "usage": {
                    "prompt_tokens": sum(count for _, count in choices),
                    "completion_tokens": len(choices) * min(1, body["max_tokens"]),
                },
            }
            return as_json(self.change(answer) if self.change else answer)
        except Refusal as refusal:
            return refusal.answer

    def card(self) -> dict[str, Any]:
        """What it says of its model."""
        card: dict[str, Any] = {"id": self.name, "object": "model"}
        if self.dialect in OWNERS:
            card |= {"owned_by": OWNERS[self.dialect], "max_model_len": self.context}
        return card

    def prompts(self, given: Any) -> list[Prompt]:
        """One text or several; vLLM also takes one list of token ids or several."""
        if isinstance(given, str):
            return [given]
        if not isinstance(given[0], int):
            given = [one if isinstance(one, str) else tuple(one) for one in given]
        else:
            given = [tuple(given)]
        if self.dialect != "vllm" and not all(isinstance(one, str) for one in given):
            raise Refusal(400, "token ids are not supported")
        return list(given)

    # The model

    def score(self, text: Prompt, generate: bool) -> Scored:
        if text not in self.memory:
            ids, special = list(text), [0] * len(text)
            if isinstance(text, str):
                encoded = self.tokenizer(text, return_special_tokens_mask=True)
                ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids])).logits[0]
            after = torch.log_softmax(logits.float(), -1)
            following = after[range(len(ids) - 1), ids[1:]]
            best = after.max(-1)
            self.memory[text] = Scored(
                ids,
                special,
                following.tolist(),
                ((after[:-1] > following[:, None]).sum(-1) + 1).tolist(),
                after[range(len(ids)), ids].tolist(),
                best.indices.tolist(),
                best.values.tolist(),
                after[-1].clone(),
            )
        scored = self.memory[text]
        if len(scored.ids) + generate > self.context:
            raise Refusal(
                400, f"This model's maximum context length is {self.context} tokens: {text}"
            )
        return scored

    def piece(self, token: int) -> bytes:
        """The bytes of a token of a byte-level or SentencePiece tokenizer."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name in self.tokenizer.all_special_tokens:
            return b""
        if name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        if "▁" in name or any(char not in BYTES for char in name):
            return name.replace("▁", " ").encode()
        return bytes(BYTES[char] for char in name)

    def choice(self, index: int, text: Prompt, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        if self.dialect == "vllm":
            scored = self.score(text, generate=True)
            return next_token_answers.choice(self, index, text, scored, body), len(scored.ids)
        assert isinstance(text, str)
        generate = body["max_tokens"] > 0
        scored = self.score(text, generate)
        ids, bos, count = scored.ids, scored.special[0], len(scored.ids)
        if self.dialect == "llama-cpp":
            assert generate, "0 lets it write until its context is full"
        written = [scored.top[-1]] if generate else []
        every = [*ids, *written]
        values = [None, *scored.next_value, *([scored.top_value[-1]] if generate else [])]
        rows = [None, *range(len(every) - 1)]  # where the distribution of each token stands
        out: dict[str, Any] = {"index": index, "finish_reason": "length", "logprobs": None}
        out["text"] = (text if body.get("echo") else "") + "".join(map(self.decode, written))
        if body.get("prompt_logprobs") is not None and self.dialect != "vllm-echo":
            raise Refusal(400, "Unrecognized request argument supplied: prompt_logprobs")
        if body.get("logprobs") is None:
            return out, count
        if self.dialect == "content":
            token, value = scored.top[-1], scored.top_value[-1]
            one = {"id": token, "token": self.decode(token), "logprob": value}
            one["bytes"] = list(self.piece(token))
            out["text"] = self.decode(token)
            out["logprobs"] = {"content": [{**one, "top_logprobs": [one]}]}
            return out, count
        first = 0
        if not body.get("echo"):
            first = count
            names = [self.decode(token) for token in every]
            offsets = [len(text)] * len(every)
        elif self.dialect == "vllm-echo":
            names = next_token_answers.names(self, every)
            offsets = [sum(map(len, names[:place])) for place in range(len(every))]
        elif self.dialect in ("openai", "sglang"):
            first = bos
            names, offsets = self.openai_names(text, every[bos:], len(written))
            names, offsets = [""] * bos + names, [0] * bos + offsets
        else:
            first = bos
            if not bos:  # its list of distributions begins with what comes after the first token
                every, values, rows = ids, scored.own_value, list(range(count))
            pieces = [self.piece(token) for token in every]
            names = [piece.decode("utf-8", "ignore") for piece in pieces]
            offsets = [
                len(b"".join(pieces[bos:place]).decode("utf-8", "ignore"))
                for place in range(len(every))
            ]
        tops: list[dict[str, float] | None] = []
        for name, value, row in zip(names, values, rows, strict=True):
            if value is None or row is None:
                tops.append(None)
                continue
            likeliest = self.decode(scored.top[row])
            tops.append({likeliest: scored.top_value[row]} | {name: value})
        if self.byte_offsets:
            offsets = [len((text + "x" * 99)[:at].encode()) for at in offsets]
        values, tops = values[first:], tops[first:]
        if body.get("echo"):
            values, tops = [None, *values[1:]], [None, *tops[1:]]
        out["logprobs"] = {
            "tokens": names[first:],
            "token_logprobs": values,
            "text_offset": offsets[first:],
            "top_logprobs": tops,
        }
        return out, count

    def openai_names(
        self, text: str, every: list[int], written: int
    ) -> tuple[list[str], list[int]]:
        spans = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        names, offsets = [], []
        for token, (start, _) in zip(every, spans["offset_mapping"], strict=False):
            data = self.piece(token)
            try:
                names.append(data.decode())
            except UnicodeDecodeError:
                names.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in data))
            offsets.append(start)
        for token in every[len(names) :]:  # a special one at the end, and what was generated
            names.append(self.decode(token))
            offsets.append(len(text))
        return names, offsets
