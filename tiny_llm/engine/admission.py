"""What can never run is refused when it comes, with the numbers."""

from tiny_llm.config import SchedulerConfig
from tiny_llm.config.fields import require
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.request import Request


def check_request(request: Request, config: SchedulerConfig, blocks: BlockPool) -> None:
    """Raise ValueError for a request that the slots, the context or the whole pool could not hold."""
    params, count = request.params, request.num_sequences
    name, longest = ("beam_width" if request.searches else "n"), len(request.tokens) + params.max_tokens
    require(
        count <= config.max_sequences,
        f"{name}: expected at most max_sequences ({config.max_sequences}), found {count}",
    )
    what = f"prompt of {len(request.tokens)} tokens with max_tokens {params.max_tokens}"
    require(
        config.max_context is None or longest <= config.max_context,
        f"{what}: {longest} tokens are more than the context of {config.max_context}; "
        "shorten the prompt or lower max_tokens",
    )
    need = blocks.blocks_for(longest - 1)  # the last token is never computed
    if request.searches:  # its beams can't take turns, as n answers can
        need, what = need * count, f"{what} and beam_width {count}"
    require(
        need <= blocks.num_blocks,
        f"{what}: needs {need} blocks of {blocks.block_size} tokens, the pool has {blocks.num_blocks}; "
        "shorten the prompt, lower max_tokens or give the pool more memory",
    )
