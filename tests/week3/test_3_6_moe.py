"""3.6 Mixture of experts: the router, the products of the chosen experts, and the loss that keeps the load even."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from tests.week1.oracles import Array, f64, normal, silu, softmax
from tiny_llm.config.moe import MoeConfig
from tiny_llm.course.check import Checker, task
from tiny_llm.model.ops import PLAIN

FOUR = np.array([[0.5, 0.1, 0.3, 0.1], [0.05, 0.2, 0.15, 0.6], [0.48, 0.04, 0.32, 0.16], [0.08, 0.2, 0.6, 0.12]])
LOGITS = np.log(FOUR).astype(np.float32)  # of four tokens and four experts
CHOSEN = ((0, 2), (3, 1), (0, 2), (2, 1))
SHARES = ((0.625, 0.375), (0.75, 0.25), (0.6, 0.4), (0.75, 0.25))


def config(num_experts: int, per_token: int, normalize: bool = False) -> MoeConfig:
    return MoeConfig(num_experts, per_token, expert_size=4, normalize=normalize, layers=(0,))


def routed(m: Any, logits: mx.array, settings: MoeConfig, bias: Sequence[float] | None = None) -> tuple[Any, Any]:
    """Return experts and shares of `route`, each token's sorted by expert: their order is free."""
    routing = m.route(logits, settings, None if bias is None else mx.array(bias))
    if not isinstance(routing, m.Routing):
        raise TypeError(f"route: expected a Routing, found {type(routing).__name__}")
    experts, shares = routing
    wanted = (len(logits), settings.experts_per_token)
    for name, found in (("experts", experts.shape), ("shares", shares.shape)):
        if found != wanted:
            raise ValueError(f"{name}: expected the shape (T, K) = {wanted}, found {found}")
    order = mx.argsort(experts, axis=-1)
    return mx.take_along_axis(experts, order, axis=-1), mx.take_along_axis(shares, order, axis=-1)


def best(
    logits: mx.array, settings: MoeConfig, bias: Sequence[float] | None = None
) -> tuple[np.ndarray[Any, Any], Array]:
    """Return what `routed` should, one token at a time."""
    experts, shares = [], []
    for row in softmax(f64(logits)):
        scores = row if bias is None else row + np.array(bias)
        chosen = sorted(sorted(range(len(row)), key=lambda e: -scores[e])[: settings.experts_per_token])
        total = sum(row[e] for e in chosen) if settings.normalize else 1.0
        experts.append(chosen)
        shares.append([row[e] / total for e in chosen])
    return np.array(experts), np.array(shares)


def check_routing(
    check: Checker, logits: mx.array, settings: MoeConfig, bias: Sequence[float] | None = None, terms: int = 1
) -> None:
    experts, shares = best(logits, settings, bias)
    check(lambda m: routed(m, logits, settings, bias)[0], experts, axes="T K", what="experts")
    check(lambda m: routed(m, logits, settings, bias)[1], shares, axes="T K", what="shares", terms=terms)


@task("w3.6.1")
def test_four_tokens_by_hand(check: Checker) -> None:
    """The shares are .5 of .8, .3 of .8 and so on. Each token's experts are sorted here, since their order is free."""
    settings, logits = config(4, 2, normalize=True), mx.array(LOGITS)
    experts = np.array([[0, 2], [1, 3], [0, 2], [1, 2]])
    shares = np.array([[0.625, 0.375], [0.25, 0.75], [0.6, 0.4], [0.25, 0.75]])
    check(lambda m: routed(m, logits, settings)[0], experts, axes="T K", what="experts")
    check(lambda m: routed(m, logits, settings)[1], shares, axes="T K", what="shares, normalised")


@task("w3.6.1")
def test_without_normalising_shares_are_probabilities(check: Checker) -> None:
    want = np.array([[0.5, 0.3], [0.2, 0.6], [0.48, 0.32], [0.2, 0.6]])
    check(lambda m: routed(m, mx.array(LOGITS), config(4, 2))[1], want, axes="T K", what="shares")


@task("w3.6.1")
def test_a_bias_is_added_to_probabilities(check: Checker) -> None:
    """0.3 more turn .6 and .35 round, and .5 and .4, and not .75 and .2. On the logits they would turn the second."""
    logits = mx.array(np.log([[0.6, 0.05, 0.35], [0.5, 0.1, 0.4], [0.75, 0.05, 0.2]]).astype(np.float32))
    check_routing(check, logits, config(3, 1), [0.0, 0.0, 0.3])
    check_routing(check, logits, config(3, 2, normalize=True), [-0.2, 0.25, 0.0])


@task("w3.6.1")
def test_a_bias_chooses_and_does_not_count(check: Checker) -> None:
    """0.25 less for expert 2: the third token (.48 .04 .32 .16) goes to experts 0 and 3, the first to 0 and another."""
    logits, bias = mx.array(LOGITS), [0.0, 0.01, -0.25, 0.0]
    check_routing(check, logits, config(4, 2), bias)
    check_routing(check, logits, config(4, 2, normalize=True), bias)


@task("w3.6.1")
def test_random_routers(check: Checker) -> None:
    """One expert a token, all experts, one token, many tokens; large logits, too, whose exponentials overflow."""
    for num_tokens, num_experts, per_token in ((5, 6, 1), (5, 6, 6), (1, 8, 2), (40, 60, 4)):
        logits = mx.array(normal(num_tokens, num_experts) * 3)
        for normalize in (False, True):
            settings = config(num_experts, per_token, normalize)
            check_routing(check, logits, settings, terms=num_experts)
            check_routing(check, logits + 200, settings, terms=num_experts)


@task("w3.6.1")
def test_the_softmax_is_computed_in_float32(check: Checker) -> None:
    """Shares have dtype float32 and its precision, whatever the logits have. The logits differ clearly."""
    steps = np.random.default_rng(1).permuted(np.tile(np.arange(16.0) / 4, (6, 1)), axis=1)
    for dtype in (mx.bfloat16, mx.float16):
        logits = mx.array(steps).astype(dtype)
        check_routing(check, logits, config(16, 3), terms=16)
        check_routing(check, logits, config(16, 3, normalize=True), terms=16)


@task("w3.6.1")
def test_of_equal_experts_any_may_be_chosen(check: Checker) -> None:
    """Two of the three with the largest logit, or all of them: they are different ones, and their shares are equal."""
    logits = np.array([[1, 2, 2, 2], [0, 0, 0, 0], [3, 1, 1, 0]], np.float32)

    def call(m: Any) -> mx.array:
        experts, shares = routed(m, mx.array(logits), config(4, 2))
        distinct = (experts[:, 0] != experts[:, 1]).astype(mx.float32)
        chosen = mx.take_along_axis(mx.array(logits), experts, axis=-1)
        columns = [distinct, chosen.min(axis=-1), chosen.max(axis=-1), shares.min(axis=-1), shares.max(axis=-1)]
        return mx.stack(columns, axis=1)

    p = softmax(f64(logits))
    want = np.array([[1, 2, 2, p[0, 1], p[0, 1]], [1, 0, 0, 0.25, 0.25], [1, 1, 3, p[2, 1], p[2, 0]]])
    check(call, want, what="different? least and largest logit, least and largest share", terms=4)


def routing_of(m: Any, experts: Any, shares: Any, dtype: mx.Dtype = mx.float32) -> Any:
    return m.Routing(mx.array(np.array(experts, np.uint32)), mx.array(np.array(shares, np.float32)).astype(dtype))


def random_routing(num_tokens: int, per_token: int, among: Sequence[int]) -> tuple[Any, Any]:
    """Different experts for each token, in any order, and shares that do not sum to 1."""
    random = np.random.default_rng(num_tokens + per_token)
    experts = [random.permutation(among)[:per_token] for _ in range(num_tokens)]
    return np.array(experts, np.uint32), random.uniform(0.1, 1, (num_tokens, per_token)).astype(np.float32)


def mixed(x: Array, experts: Any, shares: Any, gate_up: Array, down: Array) -> Array:
    """One token and one of its experts at a time."""
    out = np.zeros_like(x)
    for token, (chosen, parts) in enumerate(zip(experts, f64(shares), strict=True)):
        for expert, share in zip(chosen, parts, strict=True):
            gate, up = np.split(gate_up[expert] @ x[token], 2)
            out[token] += share * (down[expert] @ (silu(gate) * up))
    return out


def dense(num_experts: int, hidden: int, size: int) -> dict[str, dict[str, mx.array]]:
    gate_up, down = normal(num_experts, 2 * size, hidden), normal(num_experts, hidden, size, seed=1)
    return {"gate_up_proj": {"weight": mx.array(gate_up)}, "down_proj": {"weight": mx.array(down)}}


def check_experts(check: Checker, num_tokens: int, per_token: int, among: Sequence[int], num_experts: int) -> None:
    """Compare float32 experts of hidden 6 and size 5 with `mixed`."""
    w, x = dense(num_experts, 6, 5), normal(num_tokens, 6, seed=2)
    experts, shares = random_routing(num_tokens, per_token, among)
    want = mixed(f64(x), experts, shares, f64(w["gate_up_proj"]["weight"]), f64(w["down_proj"]["weight"]))
    terms = 6 * 5 * per_token
    check(
        lambda m: m.sorted_experts(mx.array(x), routing_of(m, experts, shares), w, PLAIN), want, axes="T D", terms=terms
    )


def times(num_experts: int) -> dict[str, dict[str, mx.array]]:
    """Experts of hidden 1: with `GATE_ONLY`, expert e multiplies by e + 1."""
    gate_up = [[[e + 1.0], [1.0]] for e in range(num_experts)]
    return {"gate_up_proj": {"weight": mx.array(gate_up)}, "down_proj": {"weight": mx.ones((num_experts, 1, 1))}}


GATE_ONLY = PLAIN._replace(swiglu=lambda gate_up: gate_up[..., : gate_up.shape[-1] // 2])


@task("w3.6.2")
def test_experts_that_multiply_by_hand(check: Checker) -> None:
    """Token 1 is 2, and its experts multiply by 4 and by 2: 0.75 · 4 · 2 + 0.25 · 2 · 2 = 7."""
    check_by_hand(check)


def check_by_hand(check: Checker) -> None:
    x = mx.array([[1.0], [2.0], [3.0], [4.0]])
    want = np.array([[1.75], [7.0], [5.4], [11.0]])
    check(lambda m: m.sorted_experts(x, routing_of(m, CHOSEN, SHARES), times(4), GATE_ONLY), want, axes="T D")


@task("w3.6.2")
def test_products_of_the_chosen(check: Checker) -> None:
    """Four tokens, one token, one expert of four, all four, two idle ones, one expert for all tokens."""
    check_experts(check, 4, 2, range(4), 4)
    check_experts(check, 1, 2, range(4), 4)
    check_experts(check, 6, 1, range(4), 4)
    check_experts(check, 5, 4, range(4), 4)
    check_experts(check, 7, 2, (4, 1, 2), 6)
    check_experts(check, 3, 1, (2,), 4)


@task("w3.6.2")
def test_many_tokens(check: Checker) -> None:
    check_experts(check, 50, 3, range(8), 8)


@task("w3.6.2")
def test_packed_experts_and_parts(check: Checker) -> None:
    """Gate and up of 4 bits in two parts, down of 8 bits; in float16 the shares are rounded to it, too."""
    w, x = packed_experts(), normal(9, 32, seed=2)
    experts, shares = random_routing(9, 2, range(5))
    for dtype in (mx.float32, mx.float16):
        layer, rows = cast(w, dtype), mx.array(x).astype(dtype)
        gate_up = np.concatenate([unpacked(part, 32) for part in layer["gate_up_proj"]["parts"]], axis=1)
        want = mixed(f64(rows), experts, f64(mx.array(shares).astype(dtype)), gate_up, unpacked(layer["down_proj"], 32))
        call: Callable[[Any], mx.array] = lambda m, layer=layer, rows=rows: m.sorted_experts(  # noqa: E731
            rows, routing_of(m, experts, shares), layer, PLAIN
        )
        check(call, want, axes="T D", dtype=dtype, terms=32 * 32)


def packed_experts() -> dict[str, Any]:
    parts = [packed(normal(5, 32, 32, seed=seed) / 6, 4) for seed in (3, 4)]
    return {"gate_up_proj": {"parts": parts}, "down_proj": packed(normal(5, 32, 32, seed=5) / 6, 8)}


def packed(w: Any, bits: int) -> dict[str, mx.array]:
    return dict(zip(("weight", "scales", "biases"), mx.quantize(mx.array(w), group_size=32, bits=bits), strict=True))


def unpacked(w: dict[str, mx.array], width: int) -> Array:
    bits = w["weight"].shape[-1] * 32 // width
    scales, biases = w["scales"].astype(mx.float32), w["biases"].astype(mx.float32)
    return f64(mx.dequantize(w["weight"], scales, biases, group_size=32, bits=bits))


def cast(w: Any, dtype: mx.Dtype) -> Any:
    """Change the dtype of all floats."""
    if isinstance(w, mx.array):
        return w if w.dtype == mx.uint32 else w.astype(dtype)
    return (
        {name: cast(child, dtype) for name, child in w.items()} if isinstance(w, dict) else [cast(c, dtype) for c in w]
    )


@task("w3.6.2")
def test_shares_of_another_dtype(check: Checker) -> None:
    """The result has the dtype of x."""
    x = mx.array([[1.0], [2.0], [3.0], [4.0]])
    half = f64(mx.array(SHARES).astype(mx.bfloat16))
    want = np.array([[x * sum(s * (e + 1) for e, s in zip(chosen, row, strict=True))]
                     for x, chosen, row in zip((1, 2, 3, 4), CHOSEN, half, strict=True)])  # fmt: skip
    check(
        lambda m: m.sorted_experts(x, routing_of(m, CHOSEN, SHARES, mx.bfloat16), times(4), GATE_ONLY), want, axes="T D"
    )


@task("w3.6.2")
def test_each_expert_is_read_once(check: Checker) -> None:
    """A row for each choice, in which the expert changes as often as there are further ones. Expert 3 is idle."""
    check_by_hand(check)
    experts, shares = random_routing(40, 2, (0, 1, 2, 4))
    check(lambda m: rows_and_runs(m, CHOSEN, SHARES), [8, 4], what="rows, and how often an expert is read")
    check(lambda m: rows_and_runs(m, experts, shares), [80, 4], what="rows, and how often an expert is read")


def rows_and_runs(m: Any, experts: Any, shares: Any) -> list[int]:
    """Return how many rows the experts compute, and in how many runs of one expert. A row's gate is its expert."""
    seen: list[int] = []

    def swiglu(gate_up: mx.array) -> mx.array:
        seen.extend(int(gate) for gate in gate_up[..., 0].reshape(-1).tolist())
        return gate_up[..., :1]

    x = mx.ones((len(experts), 1))
    gate_up = mx.array([[[float(e)], [1.0]] for e in range(5)])
    w = {"gate_up_proj": {"weight": gate_up}, "down_proj": {"weight": mx.ones((5, 1, 1))}}
    mx.eval(m.sorted_experts(x, routing_of(m, experts, shares), w, PLAIN._replace(swiglu=swiglu)))
    return [len(seen), 1 + sum(a != b for a, b in pairwise(seen))]


@task("w3.6.2")
def test_products_are_told_that_the_experts_ascend(check: Checker) -> None:
    """Only then `gathered_product` reads each expert once; and if it is told so, it must be true."""

    def call(m: Any) -> list[bool]:
        given, told, ascending = m.gathered_product, [], []

        def watched(x: mx.array, experts: mx.array, w: Any, is_sorted: bool = False) -> Any:
            numbers = experts.tolist()
            told.append(is_sorted or len(set(numbers)) < 2)
            ascending.append(numbers == sorted(numbers))
            return given(x, experts, w, is_sorted)

        m.gathered_product = watched
        try:
            mx.eval(m.sorted_experts(mx.ones((4, 1)), routing_of(m, CHOSEN, SHARES), times(4), GATE_ONLY))
        finally:
            m.gathered_product = given
        return [all(told), all(ascending)]

    check_by_hand(check)
    check(lambda m: rows_and_runs(m, CHOSEN, SHARES), [8, 4], what="rows, and how often an expert is read")
    check(call, [True, True], what="told of the order, and the experts ascend")


def loss(logits: Array, experts: Any) -> float:
    """E · Σ f · p, expert by expert."""
    num_tokens, num_experts = logits.shape
    p, choices = softmax(logits), [int(e) for row in experts for e in row]
    total = 0.0
    for expert in range(num_experts):
        total += choices.count(expert) / len(choices) * sum(p[:, expert]) / num_tokens
    return num_experts * total


def check_loss(check: Checker, logits: Any, experts: Any, want: float | None = None) -> None:
    experts = np.array(experts, np.uint32)
    expected = loss(f64(logits), experts) if want is None else want
    check(lambda m: m.balance_loss(mx.array(logits), mx.array(experts)), np.array(expected), terms=len(experts))


@task("w3.6.3")
def test_the_loss_of_four_tokens_by_hand(check: Checker) -> None:
    """f is ¼ ¼ ⅜ ⅛ and p .2775 .135 .3425 .245."""
    check_loss(check, LOGITS, CHOSEN, 1.04875)


@task("w3.6.3")
def test_an_even_load_costs_one(check: Checker) -> None:
    check_loss(check, np.zeros((4, 4), np.float32), [[0, 1], [2, 3], [1, 0], [3, 2]], 1.0)
    check_loss(check, np.zeros((6, 3), np.float32), [[0], [1], [2], [2], [1], [0]], 1.0)


@task("w3.6.3")
def test_one_expert_for_all_costs_e(check: Checker) -> None:
    """With two of four experts for all tokens it is half of that."""
    collapsed = np.full((5, 4), -60.0, np.float32)
    collapsed[:, 2] = 0
    check_loss(check, collapsed, [[2]] * 5, 4.0)
    collapsed[:, 0] = 0
    check_loss(check, collapsed, [[2, 0]] * 5, 2.0)


@task("w3.6.3")
def test_choices_and_probabilities_that_disagree(check: Checker) -> None:
    """As a bias can make them. The loss may then be below 1."""
    check_loss(check, LOGITS, [[1, 3], [1, 0], [3, 1], [0, 3]])
    check_loss(check, LOGITS[:, :2], [[1], [0], [1], [1]])


@task("w3.6.3")
def test_random_loads(check: Checker) -> None:
    for num_tokens, num_experts, per_token in ((1, 4, 2), (9, 5, 1), (9, 5, 5), (70, 16, 3)):
        experts, _ = random_routing(num_tokens, per_token, range(num_experts))
        check_loss(check, 2 * normal(num_tokens, num_experts) + 1, experts)


@task("w3.6.3")
def test_the_gradient_flows_through_the_probabilities(check: Checker) -> None:
    """Of token t and expert i it is E / T · p_ti · (f_i - Σ_j f_j · p_tj): busy experts are pushed down."""
    logits, experts = normal(5, 4), np.array([[0, 2], [2, 1], [2, 0], [1, 2], [2, 3]], np.uint32)
    p = softmax(f64(logits))
    f = np.array([(experts == e).mean() for e in range(4)])
    want = 4 / 5 * p * (f - (p * f).sum(axis=1, keepdims=True))
    check(
        lambda m: mx.grad(m.balance_loss)(mx.array(logits), mx.array(experts)),
        want,
        axes="T E",
        what="gradient of the logits",
        terms=20,
    )
