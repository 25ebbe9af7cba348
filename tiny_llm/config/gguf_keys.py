"""What becomes of the keys of a GGUF file's metadata that begin with the architecture's name, such as llama.vocab_size.

The table is like those of `keys.py`. Other keys: those of the tokenizer are read in `model/gguf_tokenizer.py`, those of
sampling (general.sampling.*) become the defaults of a request, and the rest of general.* are notes.
"""

from tiny_llm.config.rules import HARMLESS, HONOURED, NOTE, OTHER_WEIGHTS, REFUSED, Rule

GGUF_RULES = (
    Rule(
        "embedding_length block_count feed_forward_length attention.head_count",
        HONOURED,
        "the model's shape; required, each one number for all layers",
    ),
    Rule("context_length", HONOURED, "the longest context, unless YaRN stretches it; required"),
    Rule("attention.head_count_kv", HONOURED, "attention.head_count if missing"),
    Rule("attention.key_length", HONOURED, "the width of a head; embedding_length / attention.head_count if missing"),
    Rule("attention.value_length", HONOURED, "another value than attention.key_length is refused"),
    Rule("rope.dimension_count", HONOURED, "another value than the width of a head is refused"),
    Rule("attention.layer_norm_rms_epsilon", HONOURED, "in every norm; required"),
    Rule("vocab_size", HONOURED, "another value than the rows of token_embd.weight is refused"),
    Rule("rope.freq_base", HONOURED, "the base of the rotary frequencies; 10000 if missing"),
    Rule("rope.scaling.type", HONOURED, "none, linear or yarn; longrope and others are refused"),
    Rule("rope.scaling.factor", HONOURED, "how far linear and yarn stretch"),
    Rule(
        "rope.scaling.original_context_length",
        HONOURED,
        "the context before stretching, for yarn and for the factors of Llama 3 (rope_freqs.weight)",
    ),
    Rule("rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow", HONOURED, "borders of yarn's ramp; 32 and 1"),
    Rule("rope.scaling.attn_factor rope.scaling.yarn_attn_factor", REFUSED, "yarn's own gain is computed here", (1,)),
    Rule("rope.scaling.yarn_ext_factor", REFUSED, "yarn is applied as in its paper; " + OTHER_WEIGHTS, (1, -1)),
    Rule("rope.scaling.yarn_log_multiplier", REFUSED, "yarn's own gain is computed here; " + OTHER_WEIGHTS, (0,)),
    Rule("rope.scale_linear", REFUSED, "of old files: take one made by a current llama.cpp", (1,)),
    Rule("rope.scaling.alpha rope.dimension_sections", REFUSED, "all pairs turn alike here; " + OTHER_WEIGHTS, (0,)),
    Rule("attention.causal", REFUSED, "a text is generated from left to right; " + OTHER_WEIGHTS, (True,)),
    Rule("use_parallel_residual", REFUSED, "a layer adds twice here; " + OTHER_WEIGHTS, (False,)),
    Rule("hidden_activation", REFUSED, "only SiLU is there; " + OTHER_WEIGHTS, ("silu", "swish")),
    Rule("expert_count expert_used_count", REFUSED, "of experts only those of a qwen3moe are read", (0,)),
    Rule(
        "attention.sliding_window attention.clamp_kqv attention.max_alibi_bias attention.scale",
        REFUSED,
        "attention has no such setting here; " + OTHER_WEIGHTS,
        (0,),
    ),
    Rule(
        "logit_scale residual_scale embedding_scale",
        REFUSED,
        "nothing is scaled here; " + OTHER_WEIGHTS,
        (0, 1),
    ),
    Rule("attn_logit_softcapping final_logit_softcapping", REFUSED, "nothing is capped here; " + OTHER_WEIGHTS, (0,)),
    Rule("rope.scaling.finetuned", HARMLESS, NOTE),
    Rule("pooling_type", HARMLESS, "of an embedding model; `embed` takes the pooling as an argument"),
)

EXPERT_RULES = (  # of a qwen3moe, beside and before the others
    Rule(
        "expert_count expert_used_count expert_feed_forward_length",
        HONOURED,
        "how many experts there are, how many a token is sent to, and their width; required",
    ),
    Rule("feed_forward_length", HONOURED, "no layer has a dense MLP: not used"),
    Rule("expert_weights_norm", HONOURED, "true: the shares of a token's experts sum to 1; true if missing"),
    Rule("expert_gating_func", REFUSED, "the router is a softmax here; " + OTHER_WEIGHTS, (1,)),
    Rule(
        "expert_group_count leading_dense_block_count expert_shared_count expert_shared_feed_forward_length",
        REFUSED,
        "of experts only those of a qwen3moe are read: in all layers, in one group, with none that is shared",
        (0,),
    ),
    Rule("expert_weights_scale", REFUSED, "shares are not scaled here; " + OTHER_WEIGHTS, (0, 1)),
)
