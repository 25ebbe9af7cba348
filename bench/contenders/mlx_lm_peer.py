"""The process of mlx-lm: jobs as `process.py` says, with `model` an MLX directory, in float32 on this engine's BLAS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tiny_llm  # noqa: F401  activates the BLAS, so before mlx  # isort: skip

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, batch_generate, generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import load_model
from process import Job, main, timed, total_speed


def open_model(job: Job) -> nn.Module:
    model = load_model(Path(job["model"]))[0]
    model.set_dtype(mx.float32)  # 16 bits are many times slower on a CPU
    mx.eval(model.parameters())
    return model


def speed(job: Job) -> Job:
    """Prefill and decode of one prompt."""
    model = open_model(job)
    prompt = job["prompt"]
    for _ in generate_step(mx.array(job["warm_up"]), model, max_tokens=4):
        pass
    steps = generate_step(mx.array(prompt), model, max_tokens=job["tokens"])
    return {**timed((token for token, _ in steps), len(prompt)), "weights": weight_bytes(model)}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights that a decoded token reads: all but the embedding, unless that is the head, too."""
    arrays = dict(tree_flatten(model.parameters()))
    untied = any(name.startswith("lm_head") for name in arrays)
    return sum(array.nbytes for name, array in arrays.items() if not (untied and "embed_tokens" in name))


def batch(job: Job) -> Job:
    """Many chats at once."""
    model = open_model(job)
    tokenizer = load_tokenizer(Path(job["model"]))
    tokenizer._eos_token_ids = set()

    def generate(count: int) -> list[list[int]]:
        return batch_generate(
            model,
            tokenizer,
            job["prompts"],
            max_tokens=count,
            return_token_ids=True,
            completion_batch_size=len(job["prompts"]),
        ).token_ids

    generate(4)
    return total_speed(lambda: generate(job["tokens"]))


def texts(job: Job) -> Job:
    """Greedy answers up to the end of the turn, and at each token the gap between the two best logits."""
    engine = BatchGenerator(open_model(job), stop_tokens=[[job["stop"]]])
    uids = engine.insert(job["prompts"], [job["tokens"]] * len(job["prompts"]))
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    gaps: dict[int, list[float]] = {uid: [] for uid in uids}
    while responses := engine.next_generated():
        for response in responses:
            second, first = np.partition(np.array(response.logprobs), -2)[-2:]
            tokens[response.uid].append(response.token)
            gaps[response.uid].append(float(first - second))
    engine.close()
    return {"tokens": [tokens[uid] for uid in uids], "gaps": [gaps[uid] for uid in uids]}


def logits(job: Job) -> Job:
    """Logits after each prompt, fed token by token and at once, as an array (2, prompts, vocabulary) in a file."""
    model = open_model(job)
    rows = [[], []]
    for prompt in job["prompts"]:
        cache = make_prompt_cache(model)
        for token in prompt:
            y = model(mx.array([[token]]), cache=cache)
            mx.eval(y)
        rows[0].append(np.array(y)[0, -1])
        rows[1].append(np.array(model(mx.array([prompt]), cache=make_prompt_cache(model)))[0, -1])
    np.save(job["out"], np.array(rows, np.float64))
    return {}


if __name__ == "__main__":
    main({"speed": speed, "batch": batch, "texts": texts, "logits": logits})
