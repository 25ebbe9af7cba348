"""2.1 Measuring: what a step costs, counted on real weights and in a loop, and the roofline."""

from dataclasses import replace

from tests.week1 import tiny
from tiny_llm.config import ModelConfig, RopeConfig
from tiny_llm.course.check import Checker, task
from tiny_llm.kernels.chips import Chip

QWEN3_06B = ModelConfig("qwen3", 1024, 28, 3072, 16, 8, 128, 151_936, 40_960, 1e-6, RopeConfig(1e6), True, False, True)
SMALL = replace(  # hidden 2, three query heads and one K/V head of 3, MLP 5, vocabulary 7, one layer
    tiny.QWEN3,
    hidden_size=2,
    num_hidden_layers=1,
    intermediate_size=5,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=3,
    vocab_size=7,
)
CHIP = Chip("test", 100, 2, "made up")


def matrices(config: ModelConfig) -> int:
    """The sizes of all matrices of a model, its table left out where a head of its own does that work."""
    found, waiting = 0, [tiny.weights(config)]
    while waiting:
        tree = waiting.pop()
        children = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, child in children:
            if name == "embed_tokens" and not config.tie_word_embeddings:
                continue
            if isinstance(child, dict | list):
                waiting.append(child)
            elif child.ndim == 2:
                found += child.size
    return found


@task("w2.1.1")
def test_a_layer_by_hand(check: Checker) -> None:
    """q and o have 2 · 9 numbers each, k and v 2 · 3, gate, up and down 2 · 5, the head 2 · 7."""
    check(lambda m: m.matrix_weights(SMALL), 2 * 18 + 2 * 6 + 3 * 10 + 14)
    check(lambda m: m.matrix_weights(replace(SMALL, num_hidden_layers=10)), 10 * 78 + 14, what="ten layers")


@task("w2.1.1")
def test_the_arrays_of_two_models(check: Checker) -> None:
    """Grouped heads, with a head of its own and with a tied one: counted in the arrays of such a model."""
    for config in (tiny.QWEN3, tiny.QWEN2):
        check(lambda m, c=config: m.matrix_weights(c), matrices(config), what=config.model_type)


@task("w2.1.1")
def test_qwen3_06b(check: Checker) -> None:
    check(lambda m: m.matrix_weights(QWEN3_06B), 595_984_384)


@task("w2.1.2")
def test_weights_and_cache_of_one_sequence(check: Checker) -> None:
    """1.19 GB of weights, and 114,688 bytes for each token: 28 layers, a key and a value, 8 heads of 128, 2 bytes."""
    check(lambda m: m.step_bytes(QWEN3_06B, 1), 595_984_384 * 2.0 + 114_688, what="context 1")
    check(lambda m: m.step_bytes(QWEN3_06B, 1000), 595_984_384 * 2.0 + 114_688_000, what="context 1,000")


@task("w2.1.2")
def test_a_batch_shares_the_weights(check: Checker) -> None:
    want = 595_984_384 * 2.0 + 16 * 114_688_000
    check(lambda m: m.step_bytes(QWEN3_06B, 1000, 16), want, what="16 sequences")


@task("w2.1.2")
def test_fewer_bits(check: Checker) -> None:
    want = 595_984_384 * 4.5 / 8 + 3 * 57_344_000
    check(lambda m: m.step_bytes(QWEN3_06B, 1000, 3, 4.5, 8), want, what="weights of 4.5 bits, a cache of 8")


@task("w2.1.2")
def test_a_window_reads_no_more_than_it_holds(check: Checker) -> None:
    """One of two layers has a window of 10: 100 + 10 tokens, each 2 · 2 heads · 8 numbers · 2 bytes."""
    config = replace(tiny.QWEN3, sliding_window=10, sliding_layers=(1,))
    want = matrices(config) * 2.0 + 110 * 64
    check(lambda m: m.step_bytes(config, 100), want)


@task("w2.1.3")
def test_operations_by_hand(check: Checker) -> None:
    """92 weights; two keys, which each of three heads compares in 3 numbers and whose values it adds up."""
    check(lambda m: m.step_operations(SMALL, 2), 2 * 92 + 2 * 3 * (6 + 6))


@task("w2.1.3")
def test_a_loop_that_counts(check: Checker) -> None:
    """Every multiplication and addition of a forward step, one head and one key after the other."""
    config, context = tiny.QWEN3, 9
    count = 2 * matrices(config)
    for _layer in range(config.num_hidden_layers):
        for _head in range(config.num_attention_heads):
            for _key in range(context):
                count += 2 * config.head_dim  # the score
                count += 2 * config.head_dim  # the value, weighted
    check(lambda m: m.step_operations(config, context), count)
    check(lambda m: m.step_operations(config, context, 5), 5 * count, what="5 sequences")


@task("w2.1.3")
def test_operations_of_qwen3_06b(check: Checker) -> None:
    want = 2 * 595_984_384 + 28 * 1000 * 16 * 128 * 4
    check(lambda m: m.step_operations(QWEN3_06B, 1000), want)


@task("w2.1.4")
def test_the_slower_one_is_the_bound(check: Checker) -> None:
    """1 GB at 100 GB/s takes 10 ms; 10 thousand million operations at 2 TFLOP/s take 5, ten times as many 50."""
    check(lambda m: round(m.bound(CHIP, 1e9, 1e10).seconds * 1e3, 6), 10.0, what="milliseconds")
    check(lambda m: m.bound(CHIP, 1e9, 1e10).by, "memory", what="by")
    check(lambda m: round(m.bound(CHIP, 1e9, 1e11).seconds * 1e3, 6), 50.0, what="milliseconds")
    check(lambda m: m.bound(CHIP, 1e9, 1e11).by, "arithmetic", what="by")


@task("w2.1.4")
def test_a_chip_without_a_figure(check: Checker) -> None:
    chip = Chip("test", 100, None, "made up")
    check(lambda m: round(m.bound(chip, 1e9, 1e15).seconds * 1e3, 6), 10.0, what="milliseconds")
    check(lambda m: m.bound(chip, 1e9, 1e15).by, "memory", what="by")
