"""What vLLM and SGLang answer about prompts and chosen next tokens, for the endpoint of the tests.

The names of tokens are as useless as theirs: a part of a character is "", and several look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.endpoint import Endpoint, Prompt, Scored

MOST_SHOWN, MOST_CHOSEN = 20, 128  # vLLM's limits


def refuse(message: str) -> Exception:
    from tests.endpoint import Refusal

    return Refusal(400, message)


def names(endpoint: Endpoint, ids: Sequence[int]) -> list[str]:
    """Tokens as vLLM writes them: a character belongs to the last of its parts."""
    out, waiting = [], b""
    for token in ids:
        name = endpoint.decode(token)
        if "\ufffd" in name:
            waiting += endpoint.piece(token)
            try:
                name, waiting = waiting.decode(), b""
            except UnicodeDecodeError:
                name = ""
        else:
            waiting = b""
        out.append(name)
    return out


def name_of(endpoint: Endpoint, token: int) -> str:
    """A token that might have stood there."""
    return names(endpoint, [token])[0]


def choice(
    endpoint: Endpoint, index: int, prompt: Prompt, scored: Scored, body: dict[str, Any]
) -> dict[str, Any]:
    """One of vLLM's choices."""
    ids, written = scored.ids, scored.top[-1]
    shown, told, chosen = (
        body.get(name) for name in ("logprobs", "prompt_logprobs", "logprob_token_ids")
    )
    for kind, number in (("sample", shown), ("prompt", told)):
        if number is not None and number > MOST_SHOWN:
            raise refuse(
                f"Requested {kind} logprobs of {number}, which is greater than max allowed: 20"
            )
    if chosen is not None and len(chosen) > MOST_CHOSEN:
        raise refuse(
            f"Requested logprob_token_ids of length {len(chosen)}, which is greater than max "
            "allowed: 128"
        )
    if any(not 0 <= one < len(scored.last) for one in [*(chosen or ()), *ids]):
        raise refuse("token ids are out of vocabulary")
    echo = bool(body.get("echo"))
    own = names(endpoint, [*ids, written])
    out: dict[str, Any] = {"index": index, "finish_reason": "length", "logprobs": None}
    text = prompt if isinstance(prompt, str) else endpoint.tokenizer.decode(list(prompt))
    out["text"] = (text if echo else "") + own[-1]
    out |= {"token_ids": None, "prompt_token_ids": None, "prompt_logprobs": None}
    told = shown if echo and told is None else told
    if told is not None:
        out["prompt_logprobs"] = [
            None,
            *(_place(endpoint, scored, row, own[row + 1], told) for row in range(len(ids) - 1)),
        ]
    if shown is None:
        return out
    by_id = bool(body.get("return_tokens_as_token_ids"))
    values = [None, *scored.next_value, scored.top_value[-1]]
    spelled = [f"token_id:{one}" for one in [*ids, written]] if by_id else own
    tops: list[dict[str, float] | None] = [None]
    for row, value in enumerate(values[1:]):
        listed = chosen if chosen is not None and row == len(ids) - 1 else [scored.top[row]]
        others = {
            f"token_id:{one}" if by_id else name_of(endpoint, one): _at(scored, row, one)
            for one in listed
        }
        tops.append(
            {spelled[row + 1]: float(value or 0.0)} | others
        )  # names that look alike collide
    first = 0 if echo else len(ids)
    lengths = [len(one) for one in own]
    out["logprobs"] = {
        "tokens": spelled[first:],
        "token_logprobs": values[first:],
        "text_offset": [sum(lengths[first:place]) for place in range(first, len(own))],
        "top_logprobs": tops[first:],
    }
    return out


def _at(scored: Scored, row: int, token: int) -> float:
    """Log-probability of a token that may be asked for in a row: any in the last, else the top."""
    return float(scored.last[token]) if row == len(scored.ids) - 1 else scored.top_value[row]


def _place(endpoint: Endpoint, scored: Scored, row: int, name: str, most: int) -> dict[str, Any]:
    """vLLM's words on the token of a prompt that follows on row `row`."""
    token, top = scored.ids[row + 1], scored.top[row]
    found = {token: (scored.next_value[row], scored.next_rank[row], name)}
    if most and top != token:
        found[top] = (scored.top_value[row], 1, name_of(endpoint, top))
    return {
        str(one): {"logprob": max(value, -9999.0), "rank": rank, "decoded_token": word}
        for one, (value, rank, word) in found.items()
    }


def tokenized(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/tokenize`."""
    ids = endpoint.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])
    return {"count": len(ids["input_ids"]), "tokens": ids["input_ids"], "token_strs": None}


def generated(endpoint: Endpoint, body: dict[str, Any]) -> Any:
    """The answer of SGLang's `/generate`: a list for several prompts."""
    several = isinstance(body["input_ids"][0], list)
    prompts = body["input_ids"] if several else [body["input_ids"]]
    chosen = body.get("token_ids_logprob") or [[] for _ in prompts]
    chosen = chosen if isinstance(chosen[0], list) else [chosen] * len(prompts)
    answers = []
    for prompt, ids in zip(prompts, chosen, strict=True):
        scored = endpoint.score(tuple(prompt), generate=True)
        start = body.get("logprob_start_len", -1)
        told = list(zip([None, *scored.next_value], scored.ids, strict=True)) if start == 0 else []
        written, value = scored.top[-1], scored.top_value[-1]
        meta = {
            "prompt_tokens": len(prompt),
            "completion_tokens": 1,
            "cached_tokens": 0,
            "input_token_logprobs": [[log, token, None] for log, token in told],
            "output_token_logprobs": [[value, written, None]],
            "output_token_ids_logprobs": [[[float(scored.last[one]), one, None] for one in ids]],
        }
        answers.append(
            {"text": endpoint.decode(written), "output_ids": [written], "meta_info": meta}
        )
    return answers if several else answers[0]
