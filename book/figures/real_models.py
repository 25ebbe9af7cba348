"""Tables of appendix A.3: what the weights of known models take, what fits into a machine, how fast it can be at most.

All of it is arithmetic from the shapes that the models' config.json files give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GB = 1e9
SPREAD = 2  # bytes of a scale and of a bias
GROUP = 64
STORED_BITS = {"16 bits": 16.0, "8 bits": 8 + 2 * 8 * SPREAD / GROUP, "4 bits": 4 + 2 * 8 * SPREAD / GROUP}
MEMORIES = (8, 16, 24, 32)  # GB
RESERVE = 3.0  # GB for the system, other programs and the engine itself
LEAST_CONTEXT = 4096
BANDWIDTHS = (25, 50, 100, 400)  # GB/s
CONTEXT = 1000  # tokens, of the table of speeds


@dataclass(frozen=True)
class Shape:
    """The shape of a model. With `experts`, each of them has an MLP of `inner`, and a token uses `active` of them."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int
    experts: int = 0
    active: int = 0

    @property
    def attention(self) -> int:
        """Weights of the four matrices of one layer's attention."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def mlp(self) -> int:
        """Weights of one MLP's three matrices."""
        return 3 * self.hidden * self.inner

    @property
    def weights(self) -> int:
        """All weights of matrices."""
        mlps = self.experts * (self.mlp + self.hidden) if self.experts else self.mlp
        tables = 1 if self.tied else 2
        return self.layers * (self.attention + mlps) + tables * self.vocab * self.hidden

    @property
    def read(self) -> int:
        """The weights that one token is multiplied with: all but the embedding table and the other experts."""
        mlps = self.active * self.mlp + self.experts * self.hidden if self.experts else self.mlp
        return self.layers * (self.attention + mlps) + self.vocab * self.hidden

    def kv_bytes(self, bits: float) -> float:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bits / 8


QWEN, LLAMA, SMOL = 151936, 128256, 49152  # vocabularies
SHAPES = (
    Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, SMOL, True, 8192),
    Shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, SMOL, True, 8192),
    Shape("SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, SMOL, True, 8192),
    Shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, LLAMA, True, 131072),
    Shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, LLAMA, True, 131072),
    Shape("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, QWEN, True, 40960),
    Shape("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, QWEN, True, 40960),
    Shape("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, QWEN, True, 40960),
    Shape("Qwen3-8B", 36, 4096, 12288, 32, 8, 128, QWEN, False, 40960),
    Shape("Qwen3-14B", 40, 5120, 17408, 40, 8, 128, QWEN, False, 40960),
    Shape("Qwen3-32B", 64, 5120, 25600, 64, 8, 128, QWEN, False, 40960),
    Shape("Qwen3-30B-A3B", 48, 2048, 768, 32, 4, 128, QWEN, False, 40960, experts=128, active=8),
)


def tables() -> dict[str, str]:
    """The Markdown tables by the names of their files."""
    return {"models-sizes.md": sizes(), "models-fit.md": fits(), "models-speed.md": speeds()}


def sizes() -> str:
    """Gigabytes of the weights, and KiB of a token in the cache."""
    rows = [("model", "weights, millions", *(f"{name}, GB" for name in STORED_BITS), "a token, KiB", "in 8 bits, KiB")]
    for shape in SHAPES:
        stored = [f"{shape.weights * bits / 8 / GB:.2f}" for bits in STORED_BITS.values()]
        tokens = [f"{shape.kv_bytes(bits) / 1024:.0f}" for bits in (32, STORED_BITS["8 bits"])]
        rows.append((shape.name, f"{shape.weights / 1e6:,.0f}", *stored, *tokens))
    return markdown(rows)


def fits() -> str:
    """For each memory the most bits with which a model fits, and the tokens of context that then fit as well."""
    rows = [("model", *(f"{memory} GB" for memory in MEMORIES))]
    rows += [(shape.name, *(fit(shape, memory) for memory in MEMORIES)) for shape in SHAPES]
    return markdown(rows)


def fit(shape: Shape, memory: float) -> str:
    for name, bits in STORED_BITS.items():
        left = (memory - RESERVE) * GB - shape.weights * bits / 8
        tokens = min(shape.context, int(left / shape.kv_bytes(32)))
        if tokens >= LEAST_CONTEXT:
            return f"{name}: {tokens // 1000}k"
    return "–"


def speeds() -> str:
    """Megabytes that a token reads in 4 bits, and the tokens a second that a bandwidth allows at most."""
    rows = [("model", "a token reads, GB", *(f"{bandwidth} GB/s" for bandwidth in BANDWIDTHS))]
    for shape in SHAPES:
        moved = shape.read * STORED_BITS["4 bits"] / 8 + CONTEXT * shape.kv_bytes(32)
        bounds = [bandwidth * GB / moved for bandwidth in BANDWIDTHS]
        shown = [f"{bound:.0f}" if bound >= 10 else f"{bound:.1f}" for bound in bounds]
        rows.append((shape.name, f"{moved / GB:.2f}", *shown))
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *body))
