"""Rules for the keys of config.json that belong to models with experts, see `keys.py`."""

from tiny_llm.config.rules import HARMLESS, HONOURED, TRAINING, Rule

EXPERT_KEYS = (
    Rule("qkv_bias", HONOURED, "of a qwen2_moe: biases on queries, keys and values; true if missing"),
    Rule(
        "num_experts num_local_experts num_experts_per_tok moe_intermediate_size",
        HONOURED,
        "of a model with experts: how many there are (under either name), how many a token is sent to, and their "
        "width; required",
    ),
    Rule("shared_expert_intermediate_size", HONOURED, "of a qwen2_moe: the width of the shared expert; required"),
    Rule("norm_topk_prob", HONOURED, "true: the shares of a token's experts sum to 1; false if missing"),
    Rule(
        "decoder_sparse_step mlp_only_layers",
        HONOURED,
        "which layers have experts: with a step of n every n-th layer (1 if missing), without the layers in the list; "
        "the others are dense",
    ),
    Rule("router_aux_loss_coef", HARMLESS, TRAINING),
)
