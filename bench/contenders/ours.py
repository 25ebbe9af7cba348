"""The process of this engine: jobs as `process.py` says, with `model` a path and `settings` of EngineConfig."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tiny_llm import SamplingParams, load  # activates the BLAS, so before mlx  # isort: skip

import mlx.core as mx
import numpy as np
from process import Job, main, timed, total_speed

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.config import EngineConfig
from tiny_llm.engine.llm import LLM
from tiny_llm.model.fingerprint import leaves


def open_model(job: Job) -> LLM:
    return load(job["model"], config=EngineConfig(**job.get("settings", {})))


def greedy(count: int, ignore_eos: bool = True) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=ignore_eos)


def speed(job: Job) -> Job:
    """Prefill and decode of one prompt: by the pool of pages where the job says `paged`, else by a whole cache."""
    llm = open_model(job)
    prompt = job["prompt"]
    if job.get("paged"):
        llm.generate([job["warm_up"]], greedy(4))
        answer = llm.generate([prompt], greedy(job["tokens"]))[0]
        figures = {"tokens": answer.tokens, "prefill": answer.stats.prefill_tps, "decode": answer.stats.decode_tps}
    else:
        llm.generate(job["warm_up"], greedy(4))
        llm.forget()
        pieces = llm.stream(prompt, greedy(job["tokens"]))
        figures = timed((piece.token for piece in pieces), len(prompt))
    return {**figures, "weights": weight_bytes(llm)}


def weight_bytes(llm: LLM) -> int:
    """Bytes of the weights that a decoded token reads: all but the embedding, unless that is the head, too."""
    weights = dict(llm.model.weights)
    if "lm_head" in weights:
        weights.pop("embed_tokens")
    return sum(getattr(leaf, "nbytes", 0) for _, leaf in leaves(weights, ""))


def batch(job: Job) -> Job:
    """Many chats at once."""
    llm = open_model(job)
    llm.generate(job["prompts"], greedy(4))
    params = greedy(job["tokens"])
    return total_speed(lambda: [answer.tokens for answer in llm.generate(job["prompts"], params)])


def texts(job: Job) -> Job:
    """Greedy answers up to the end of the turn."""
    answers = open_model(job).generate(job["prompts"], greedy(job["tokens"], ignore_eos=False))
    return {"tokens": [answer.tokens for answer in answers]}


def logits(job: Job) -> Job:
    """Logits after each prompt, fed token by token and at once, as an array (2, prompts, vocabulary) in a file."""
    model = open_model(job).model
    rows = [[], []]
    for prompt in job["prompts"]:
        cache = ContiguousCache(model.config, model.ops)
        for token in prompt:
            y = model(mx.array([token]), cache)
            mx.eval(y)
        rows[0].append(np.array(y)[0])
        cache = ContiguousCache(model.config, model.ops)
        rows[1].append(np.array(model(mx.array(prompt), cache, slice(-1, None)))[0])
    np.save(job["out"], np.array(rows, np.float64))
    return {}


if __name__ == "__main__":
    main({"speed": speed, "batch": batch, "texts": texts, "logits": logits})
