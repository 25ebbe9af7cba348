"""The process of llama.cpp: jobs as `process.py` says, with `model` a GGUF file and the number of `threads`.

It calls the library itself, without the sampling and bookkeeping of llama-cpp-python's classes, which cost time.
"""

import ctypes
from collections.abc import Iterator, Sequence

import llama_cpp as lib
import numpy as np
from process import Job, main, timed, total_speed

ROW = 512  # tokens that a call of llama_decode computes at once, its default


@lib.llama_log_callback
def ignore(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Drop llama.cpp's messages."""


class Model:
    """A model with room for `slots` tokens in each of some sequences."""

    def __init__(self, job: Job, slots: int, sequences: int = 1):
        lib.llama_log_set(ignore, ctypes.c_void_p(0))
        lib.llama_backend_init()
        settings = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(job["model"].encode(), settings)
        assert self.model, f"llama.cpp can't load {job['model']}"
        context = lib.llama_context_default_params()
        context.n_ctx = -(-slots // 256) * 256 * sequences
        context.n_seq_max = sequences
        context.n_threads = context.n_threads_batch = job["threads"]
        self.context = lib.llama_init_from_model(self.model, context)
        assert self.context, "llama.cpp can't make a context"
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(max(ROW, sequences), 0, 1)
        self.lengths = [0] * sequences

    def clear(self) -> None:
        """Forget all tokens."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self.lengths = [0] * len(self.lengths)

    def decode(self, items: Sequence[tuple[int, int, bool]]) -> None:
        """Compute a row of (sequence, token, whether its logits are wanted), at most ROW."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (sequence, token, wanted) in enumerate(items):
            batch.token[i] = token
            batch.pos[i] = self.lengths[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
            self.lengths[sequence] += 1
        status = lib.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode returned {status}"

    def logits(self, i: int) -> np.ndarray:
        """The logits of row `i` of the last call, valid until the next one."""
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, i), (self.vocab_size,))

    def read(self, prompt: Sequence[int], sequence: int = 0) -> int:
        """Compute a prompt and return the best next token."""
        items = [(sequence, token, i == len(prompt) - 1) for i, token in enumerate(prompt)]
        for begin in range(0, len(items), ROW):
            self.decode(items[begin : begin + ROW])
        return int(self.logits(-1).argmax())

    def greedy(self, prompt: Sequence[int], count: int, stop: int | None = None) -> Iterator[int]:
        """Yield the greedy answer of one sequence, up to the token `stop`."""
        self.clear()
        token = self.read(prompt)
        for _ in range(count - 1):
            yield token
            if token == stop:
                return
            self.decode([(0, token, True)])
            token = int(self.logits(0).argmax())
        yield token

    def greedy_batch(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Answer all prompts at once: whole prompts while they fit into a row, then a token of each a step."""
        self.clear()
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        while waiting:
            items: list[tuple[int, int, bool]] = []
            last: dict[int, int] = {}  # the row of each prompt's last token
            while waiting and len(items) + len(prompts[waiting[0]]) <= ROW:
                sequence = waiting.pop(0)
                prompt = prompts[sequence]
                items += [(sequence, token, i == len(prompt) - 1) for i, token in enumerate(prompt)]
                last[sequence] = len(items) - 1
            self.decode(items)
            for sequence, row in last.items():
                answers[sequence].append(int(self.logits(row).argmax()))
        for _ in range(count - 1):
            self.decode([(sequence, answer[-1], True) for sequence, answer in enumerate(answers)])
            for row, answer in enumerate(answers):
                answer.append(int(self.logits(row).argmax()))
        return answers


def speed(job: Job) -> Job:
    """Prefill and decode of one prompt."""
    prompt = job["prompt"]
    model = Model(job, len(prompt) + job["tokens"])
    list(model.greedy(job["warm_up"], 4))
    figures = timed(model.greedy(prompt, job["tokens"]), len(prompt))
    return {**figures, "weights": lib.llama_model_size(model.model)}


def batch(job: Job) -> Job:
    """Many chats at once."""
    prompts = job["prompts"]
    longest = max(map(len, prompts))
    assert longest <= ROW, f"expected prompts of at most {ROW} tokens, found {longest}"
    model = Model(job, longest + job["tokens"], len(prompts))
    model.greedy_batch(prompts, 4)
    return total_speed(lambda: model.greedy_batch(prompts, job["tokens"]))


def texts(job: Job) -> Job:
    """Greedy answers up to the end of the turn."""
    longest = max(map(len, job["prompts"]))
    model = Model(job, longest + job["tokens"])
    return {"tokens": [list(model.greedy(prompt, job["tokens"], job["stop"])) for prompt in job["prompts"]]}


def logits(job: Job) -> Job:
    """Logits after each prompt, fed token by token and at once, as an array (2, prompts, vocabulary) in a file."""
    model = Model(job, max(map(len, job["prompts"])))
    rows: list[list[np.ndarray]] = [[], []]
    for prompt in job["prompts"]:
        model.clear()
        for token in prompt:
            model.read([token])
        rows[0].append(model.logits(-1).copy())
        model.clear()
        model.read(prompt)
        rows[1].append(model.logits(-1).copy())
    np.save(job["out"], np.array(rows, np.float64))
    return {}


if __name__ == "__main__":
    main({"speed": speed, "batch": batch, "texts": texts, "logits": logits})
