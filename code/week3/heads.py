"""Train heads for speculation on a model's own greedy answers; the model itself stays as it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.course import NotDone
from tiny_llm.model.eagle import TAPPED, EagleHead, layer_config, shapes, usual_taps
from tiny_llm.model.medusa import MedusaHeads
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.train.differentiable import HIDDEN, TRAINING, cross_entropy

DECAY = 0.8  # weight of a guess, for each place further ahead
AHEAD = 4  # guesses that an EAGLE head is trained to make from its own outputs
BATCH_TOKENS = 384
OnStep = Callable[[int, float], None]


class Sample(NamedTuple):
    """A prompt with the model's answer, and outputs of the model's layers for its tokens, (T, F) float16."""

    tokens: npt.NDArray[np.int32]
    num_prompt: int
    features: npt.NDArray[np.float16]


def samples(model: Qwen3, texts: Sequence[tuple[list[int], list[int]]], taps: Sequence[int]) -> list[Sample]:
    """Compute the features of texts, each a prompt and its answer."""
    found = []
    for prompt, answer in texts:
        tokens = np.array([*prompt, *answer], np.int32)
        _, features = model.layer_outputs(mx.array(tokens), ContiguousCache(model.config, model.ops), taps)
        found.append(Sample(tokens, len(prompt), np.array(features.astype(mx.float16))))
    return found


class Row(NamedTuple):
    """Samples one after the other: N tokens, of each its place in its text, its text's number and its features."""

    tokens: mx.array  # (N,) int32
    places: mx.array  # (N,) int32
    text: mx.array  # (N,) int32
    answer: mx.array  # (N,) bool: whether the token is the model's own
    features: mx.array  # (N, F)

    @classmethod
    def of(cls, chosen: Sequence[Sample]) -> "Row":
        places = [np.arange(len(sample.tokens)) for sample in chosen]
        own = [place >= sample.num_prompt for place, sample in zip(places, chosen, strict=True)]
        text = np.repeat(np.arange(len(chosen)), [len(place) for place in places])
        return cls(
            mx.array(np.concatenate([sample.tokens for sample in chosen])),
            mx.array(np.concatenate(places).astype(np.int32)),
            mx.array(text.astype(np.int32)),
            mx.array(np.concatenate(own)),
            mx.array(np.concatenate([sample.features for sample in chosen])).astype(mx.float32),
        )

    def ahead(self, places: int) -> tuple[mx.array, mx.array]:
        """Return the token so many places after each token, (N,), and whether to learn it, (N,) bool.

        It is to be learned where it stands in the same text and is the model's own. Where the text ends before, the
        token may be any. `places` is at least 1; the texts stand one after the other.
        """
        # YOUR CODE (w3.9.4): the row, shifted, and where that leads into another text
        raise NotDone("w3.9.4")


def rows(found: Sequence[Sample], steps: int, seed: int) -> Iterator[Row]:
    """Yield so many rows of about BATCH_TOKENS tokens, all samples in a new order each time."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(steps):
        chosen: list[Sample] = []
        while sum(len(sample.tokens) for sample in chosen) < BATCH_TOKENS:
            order = order or rng.permutation(len(found)).tolist()
            chosen.append(found[order.pop()])
        yield Row.of(chosen)


def mean_loss(logits: mx.array, targets: mx.array, counted: mx.array) -> mx.array:
    """Return the mean cross entropy over the rows that count. logits (N, V), targets and counted (N,)."""
    losses = cross_entropy(logits, targets)
    weights = counted.astype(mx.float32)
    return (losses * weights).sum() / mx.maximum(weights.sum(), 1)


def fit(
    weights: Any, loss: Callable[[Any, Row], mx.array], found: Sequence[Sample], steps: int, seed: int, report: OnStep
) -> Any:
    """Return weights after so many steps of AdamW, with a warm-up and a cosine down to zero."""
    warmup = max(1, steps // 20)
    rise = mlx.optimizers.linear_schedule(0.0, 2e-3, warmup)
    fall = mlx.optimizers.cosine_decay(2e-3, max(1, steps - warmup))
    optimizer = mlx.optimizers.AdamW(mlx.optimizers.join_schedules([rise, fall], [warmup]), weight_decay=0.01)
    differentiate = mx.value_and_grad(loss)
    for step, row in enumerate(rows(found, steps, seed), 1):
        value, gradients = differentiate(weights, row)
        gradients, _ = mlx.optimizers.clip_grad_norm(gradients, 1.0)  # type: ignore[no-untyped-call]
        weights = optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, optimizer.state)
        report(step, float(np.array(value)))
    return weights


def train_medusa(
    model: Qwen3, found: Sequence[Sample], count: int, steps: int, seed: int, report: OnStep
) -> MedusaHeads:
    """Train `count` heads of one block each that share the model's matrix. At first a block changes nothing."""
    hidden = model.config.hidden_size
    weights = {}
    for head in range(count):
        weights[f"{head}"] = {"weight": mx.zeros((hidden, hidden)), "bias": mx.zeros((hidden,))}

    def heads_of(weights: Any) -> MedusaHeads:
        return MedusaHeads(model, [[weights[f"{head}"]] for head in range(count)], [None] * count)

    def loss(weights: Any, row: Row) -> mx.array:
        logits = heads_of(weights).logits(row.features)
        losses = [mean_loss(logits[head], *row.ahead(2 + head)) * DECAY**head for head in range(count)]
        return mx.stack(losses).sum()

    return heads_of(fit(weights, loss, found, steps, seed, report))


class UnrolledAttention:
    """The attention of an EAGLE head that is trained on its own outputs: one `begin` for each guess ahead.

    At guess s, entry t stands at the end of a chain: it sees the entries of the model's features up to t - s, and the
    entries of guesses 1 to s at t - s + 1 to t. (EAGLE-3's training-time test)
    """

    def __init__(self, row: Row, scale: float):
        self.row, self.scale = row, scale
        self.guess = -1
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    def begin(self, num_tokens: int) -> mx.array:
        """Open a guess; return the places of the entries."""
        self.guess += 1
        return self.row.places

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Return what the entries of this guess see, (N, Hq, D)."""
        group = q.shape[1] // k.shape[1]
        self.keys.append(mx.repeat(k, group, axis=1).swapaxes(0, 1))  # (Hq, N, D)
        self.values.append(mx.repeat(v, group, axis=1).swapaxes(0, 1))
        q = q.swapaxes(0, 1) * self.scale
        row = self.row
        same = row.text[:, None] == row.text[None]
        seen = same & (row.places[None] <= row.places[:, None] - self.guess)
        scores = [q @ self.keys[0].swapaxes(1, 2) + mx.where(seen, 0.0, HIDDEN)]
        for back in range(self.guess - 1, -1, -1):  # the entry of guess s - back lies `back` places before
            keys = mx.roll(self.keys[self.guess - back], back, 1)
            scores.append((q * keys).sum(axis=-1, keepdims=True))
        odds = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1)
        count = q.shape[1]
        found = odds[..., :count] @ self.values[0]
        for number, back in enumerate(range(self.guess - 1, -1, -1)):
            values = mx.roll(self.values[self.guess - back], back, 1)
            found = found + odds[..., count + number, None] * values
        return found.swapaxes(0, 1)


def train_eagle(model: Qwen3, found: Sequence[Sample], vocab: int, steps: int, seed: int, report: OnStep) -> EagleHead:
    """Train a head that can guess the `vocab` most frequent tokens of the answers."""
    head = new_head(model, found, vocab, seed)
    scale = head.config.head_dim**-0.5
    index = np.zeros(model.config.vocab_size, np.int32)
    known = np.zeros(model.config.vocab_size, np.bool_)
    index[np.array(head.draft_tokens)] = np.arange(vocab)
    known[np.array(head.draft_tokens)] = True
    of_token, is_known = mx.array(index), mx.array(known)

    def loss(weights: Any, row: Row) -> mx.array:
        trained = EagleHead(model, head.config, weights, head.taps, head.draft_tokens)
        trained.ops = TRAINING
        cache = UnrolledAttention(row, scale)
        following, _ = row.ahead(1)
        targets, own = row.ahead(2)
        features = trained.combine(row.features)
        total = mx.array(0.0)
        for guess in range(AHEAD):
            states = trained.states(following, features, cache)
            counted = own & is_known[targets] & (row.places >= guess)
            total = total + DECAY**guess * mean_loss(trained.logits(states), of_token[targets], counted)
            features = mx.roll(states, 1, 0)  # what entry t - 1 gave stands for the features of token t
        return total

    head.weights = fit(head.weights, loss, found, steps, seed, report)
    return head


def new_head(model: Qwen3, found: Sequence[Sample], vocab: int, seed: int) -> EagleHead:
    """Make a head whose output layers are the model's own, with random matrices and a residual that passes through."""
    c = model.config
    shape: Mapping[str, Any] = {
        "hidden_size": c.hidden_size,
        "intermediate_size": 2 * c.hidden_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope.theta,
        "max_position_embeddings": c.max_position_embeddings,
    }
    config = layer_config(shape, model)
    counts = np.zeros(c.vocab_size, np.int64)
    for sample in found:
        counts += np.bincount(sample.tokens[sample.num_prompt :], minlength=c.vocab_size)
    chosen = mx.array(np.sort(np.argsort(-counts, kind="stable")[:vocab]).astype(np.int32))
    keys = iter(mx.random.split(mx.random.key(seed), 16))
    weights = {}
    for name, size in shapes(config, vocab).items():
        is_norm = len(size) == 1
        weights[name] = mx.ones(size) if is_norm else mx.random.normal(size, key=next(keys)) * 0.5 * size[1] ** -0.5
    for name in ("midlayer.self_attn.o_proj.weight", "midlayer.mlp.down_proj.weight"):
        weights[name] = mx.zeros(weights[name].shape)
    last = mx.eye(c.hidden_size)
    weights["fc.weight"] = mx.concatenate([mx.zeros((c.hidden_size, (TAPPED - 1) * c.hidden_size)), last], axis=1)
    weights["norm.weight"] = model.weights["norm"]["weight"].astype(mx.float32)
    unit = model.unembed(mx.eye(c.hidden_size))  # (H, V): the head's matrix, even where it is packed
    weights["lm_head.weight"] = unit.T[chosen].astype(mx.float32)
    return EagleHead(model, config, tree_map(mx.contiguous, weights), head_taps(c.num_hidden_layers), chosen)


def head_taps(num_layers: int) -> tuple[int, ...]:
    """Return the layers that a new head reads: the usual ones, or of a small model an early, a middle and the last."""
    if num_layers > 6:
        return usual_taps(num_layers)
    return max(0, num_layers // 3 - 1), max(0, 2 * num_layers // 3 - 1), num_layers - 1
