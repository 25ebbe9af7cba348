"""The keys of config.json that belong to models with experts, see `keys.py`."""

from tiny_llm.config.rules import HARMLESS, HONOURED, TRAINING, Rule

EXPERT_KEYS = (
    Rule("qkv_bias", HONOURED, "of a qwen2_moe: biases on queries, keys and values; true if missing"),
    Rule(
        "num_experts num_local_experts num_experts_per_tok moe_intermediate_size",
        HONOURED,
        "of a model with experts: how many there are, how many a token is sent to, and their width; 60, 4 and 1408 "
        "where a qwen2_moe lacks them, 128, 8 and 768 where a qwen3_moe does",
    ),
    Rule(
        "shared_expert_intermediate_size",
        HONOURED,
        "of a qwen2_moe, whose tokens all pass that expert; 5632 if missing",
    ),
    Rule("norm_topk_prob", HONOURED, "true: the shares of a token's experts sum to 1"),
    Rule(
        "decoder_sparse_step mlp_only_layers",
        HONOURED,
        "which layers have experts: every so many-th, but for those in the list; the others are dense",
    ),
    Rule("router_aux_loss_coef", HARMLESS, TRAINING),
)
