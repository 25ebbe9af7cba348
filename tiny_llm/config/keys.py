"""What becomes of each key that a model directory brings: honoured, harmless or refused.

A plain table for each file. `check.py` applies it when a file is read, `tests/model/test_keys.py` holds it against
transformers, and the book's appendix prints it. A key that is in no table is named in a warning, unless it is null.
"""

from tiny_llm.config.expert_keys import EXPERT_KEYS
from tiny_llm.config.rules import (
    HARMLESS,
    HONOURED,
    LABELS,
    NOTE,
    ONE_ROTATION,
    OTHER_WEIGHTS,
    OUTPUT,
    PICTURES,
    REFUSED,
    SEQ2SEQ,
    SPECULATION,
    SPEED,
    TRAINING,
    WITHOUT,
    Rule,
)

CONFIG = "config.json"
ROPE = "rope_parameters"  # a table within config.json, called rope_scaling in older files
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"


CONFIG_RULES = (
    *EXPERT_KEYS,
    Rule("model_type", HONOURED, "llama, qwen2, qwen3, qwen2_moe or qwen3_moe; others are refused"),
    Rule(
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads",
        HONOURED,
        "the model's shape; required",
    ),
    Rule(
        "num_key_value_heads",
        HONOURED,
        "num_attention_heads where it is null or a llama lacks it; 32 where a qwen2 or qwen3 lacks it, if that divides "
        "them, 16 where a qwen2_moe, 4 where a qwen3_moe lacks it",
    ),
    Rule(
        "head_dim",
        HONOURED,
        "hidden_size / num_attention_heads where it is null or missing; 128 where a qwen3 lacks it",
    ),
    Rule(
        "max_position_embeddings",
        HONOURED,
        "the longest context, unless YaRN stretches it; if missing 32768, and 2048 of a llama",
    ),
    Rule("rms_norm_eps", HONOURED, "in every norm; 1e-6 if missing"),
    Rule("hidden_act", HONOURED, "silu, also called swish; others are refused"),
    Rule("tie_word_embeddings", HONOURED, "true: the embedding table is the head, too"),
    Rule(
        "attention_bias",
        HONOURED,
        "of a llama, qwen3 or qwen3_moe; a qwen2 has biases on queries, keys and values whatever it says",
    ),
    Rule("mlp_bias", HONOURED, "of a llama; the MLP of a qwen has no biases"),
    Rule(
        "sliding_window",
        HONOURED,
        "tokens that such a layer sees; no window where it is null, 4096 where it is missing",
    ),
    Rule(
        "use_sliding_window max_window_layers layer_types",
        HONOURED,
        "which layers see a window only, none in a llama or a model with experts; layers other than full_attention "
        "and sliding_attention are refused",
    ),
    Rule(
        "rope_theta rope_scaling rope_parameters original_max_position_embeddings",
        HONOURED,
        "rotary positions, see the next table; values that contradict each other are refused",
    ),
    Rule("quantization", HONOURED, "MLX's: bits, group_size, mode affine and layers with their own"),
    Rule(
        "quantization_config",
        HONOURED,
        "read where quantization is missing; a quant_method (fp8, gptq, awq, bitsandbytes, …) is refused",
    ),
    Rule("eos_token_id", HONOURED, "ends an answer where generation_config.json names no token"),
    Rule("architectures", HONOURED, "a head other than …ForCausalLM is refused"),
    Rule("partial_rotary_factor", REFUSED, "heads are rotated whole here; " + OTHER_WEIGHTS, (1,)),
    Rule("rope_interleaved rope_traditional", REFUSED, "halves of a head are rotated here; " + OTHER_WEIGHTS, (False,)),
    Rule("is_causal", REFUSED, "a text is generated from left to right; " + OTHER_WEIGHTS, (True,)),
    Rule(
        "is_encoder_decoder add_cross_attention tie_encoder_decoder",
        REFUSED,
        "there is no encoder here; " + OTHER_WEIGHTS,
        (False,),
    ),
    Rule("per_layer_config pruned_heads", REFUSED, "all layers have one shape here; " + OTHER_WEIGHTS, ({}, [])),
    Rule("text_config vision_config", REFUSED, "this engine reads text only; " + OTHER_WEIGHTS, ({},)),
    Rule("configuration_files", REFUSED, "put the settings for your version into config.json and remove it", ([],)),
    Rule("use_mrope", HARMLESS, PICTURES),
    Rule("attention_dropout hidden_dropout initializer_range use_bfloat16 tf_legacy_loss", HARMLESS, TRAINING),
    Rule("dtype torch_dtype", HARMLESS, "each tensor says its own type, and --dtype chooses another"),
    Rule("use_cache chunk_size_feed_forward torchscript pretraining_tp", HARMLESS, SPEED),
    Rule(
        "attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal "
        "experts_implementation _experts_implementation _experts_implementation_internal "
        "allow_global_per_layer_attribute_access serialize_explicit_per_layer_config",
        HARMLESS,
        SPEED,
    ),
    Rule(
        "output_hidden_states output_router_logits output_attentions return_dict use_return_dict "
        "tie_last_hidden_states",
        HARMLESS,
        OUTPUT,
    ),
    Rule("id2label label2id num_labels problem_type finetuning_task task_specific_params", HARMLESS, LABELS),
    Rule("is_decoder cross_attention_hidden_size decoder_start_token_id prefix", HARMLESS, SEQ2SEQ),
    Rule("pad_token_id sep_token_id", HARMLESS, "batches are not padded here"),
    Rule("bos_token_id", HARMLESS, "begins only an empty prompt, which is refused here"),
    Rule("tokenizer_class", HARMLESS, "tokenizer.json holds the tokenizer"),
    Rule("auto_map", HARMLESS, "code of a model directory is never run; the layers are those of model_type"),
    Rule("transformers_weights", HARMLESS, "weights are read from the safetensors files"),
    Rule("attention_chunk_size", HARMLESS, "for layers of chunked_attention, which are refused"),
    Rule(
        "transformers_version _name_or_path name_or_path _commit_hash model_name unsloth_fixed unsloth_version "
        "transformers.js_config mlx_version is_llama_config",
        HARMLESS,
        NOTE,
    ),
)
SAMPLING_IN_CONFIG = Rule("", HARMLESS, "sampling settings are read from generation_config.json, as transformers does")

ROPE_RULES = (
    Rule("rope_type type", HONOURED, "default, linear, yarn or llama3; dynamic, longrope and others are refused"),
    Rule("rope_theta", HONOURED, "the base of the frequencies, above 1; here or beside the table; 10000 if missing"),
    Rule(
        "factor",
        HONOURED,
        "how far linear, yarn and llama3 stretch: at least 1; with yarn the context is factor times the original one, "
        "and null means max_position_embeddings / original_max_position_embeddings",
    ),
    Rule(
        "original_max_position_embeddings",
        HONOURED,
        "the context before stretching, for yarn and llama3; max_position_embeddings if missing",
    ),
    Rule("attention_factor", HONOURED, "yarn's gain on cosine and sine, above 0"),
    Rule("mscale mscale_all_dim", HONOURED, "where both are given and not 0, yarn's gain is computed from them"),
    Rule("beta_fast beta_slow", HONOURED, "rotations at which yarn begins and ends to stretch; 32 and 1"),
    Rule("truncate", HONOURED, "false: yarn does not round the borders of its ramp to whole pairs"),
    Rule("low_freq_factor high_freq_factor", HONOURED, "llama3's borders; required there"),
    Rule("partial_rotary_factor", REFUSED, "heads are rotated whole here; " + OTHER_WEIGHTS, (1,)),
    Rule(
        "attn_factor extrapolation_factor",
        REFUSED,
        "transformers does not know it; write the gain as attention_factor or remove it",
        (1,),
    ),
    Rule(
        "full_attention sliding_attention",
        REFUSED,
        ONE_ROTATION,
    ),
    Rule("short_factor long_factor", HARMLESS, "read by longrope only, and that rope_type is refused"),
    Rule("mrope_section mrope_interleaved", HARMLESS, PICTURES),
    Rule("finetuned", HARMLESS, NOTE),
)

GENERATION_RULES = (
    Rule("do_sample", HONOURED, "false: temperature 0; if missing, the other settings decide"),
    Rule("temperature top_k top_p min_p repetition_penalty", HONOURED, "the defaults of a request"),
    Rule("max_new_tokens", HONOURED, "the default of max_tokens, the context at most"),
    Rule("stop_strings", HONOURED, "the default of stop; the string itself is not shown"),
    Rule("length_penalty", HONOURED, "for a request that asks for beams"),
    Rule("eos_token_id", HONOURED, "the tokens that end an answer"),
    Rule(
        "top_h typical_p",
        REFUSED,
        "this engine does not cut the distribution in that way; " + WITHOUT,
        (1,),
        ("do_sample", False),
    ),
    Rule(
        "epsilon_cutoff eta_cutoff",
        REFUSED,
        "this engine does not cut the distribution in that way; " + WITHOUT,
        (0,),
        ("do_sample", False),
    ),
    Rule("num_beams", REFUSED, "remove it and ask for beams with --beam-width", (1,)),
    Rule("num_return_sequences", REFUSED, "remove it and ask for several answers with n", (1,)),
    Rule("num_beam_groups", REFUSED, "this engine searches with one group of beams; " + WITHOUT, (1,)),
    Rule("diversity_penalty penalty_alpha", REFUSED, "this engine has no such search; " + WITHOUT, (0,)),
    Rule("dola_layers constraints force_words_ids", REFUSED, "this engine has no such search; " + WITHOUT, ([],)),
    Rule("min_length min_new_tokens", REFUSED, "this engine knows no shortest answer; " + WITHOUT, (0,)),
    Rule("max_time", REFUSED, "this engine limits tokens, not seconds; remove it and set max_new_tokens"),
    Rule(
        "no_repeat_ngram_size encoder_no_repeat_ngram_size",
        REFUSED,
        "this engine bans no repetitions; remove it and set repetition_penalty",
        (0,),
    ),
    Rule("encoder_repetition_penalty guidance_scale", REFUSED, "this engine has no such rule; " + WITHOUT, (1,)),
    Rule(
        "bad_words_ids suppress_tokens begin_suppress_tokens sequence_bias",
        REFUSED,
        "remove it and give single tokens a logit_bias in the request",
        ([], {}),
    ),
    Rule(
        "forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty watermarking_config",
        REFUSED,
        "this engine has no such rule; " + WITHOUT,
    ),
    Rule(
        "token_healing force_bos_token_to_be_generated",
        REFUSED,
        "this engine changes no prompt and forces no token; " + WITHOUT,
        (False,),
    ),
    Rule(
        "logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model streamer "
        "negative_prompt_ids negative_prompt_attention_mask",
        REFUSED,
        "it is an argument of a call in transformers, no setting; remove it",
    ),
    Rule("max_length", HARMLESS, "for old programs; max_new_tokens, --max-tokens and --max-context set the limits"),
    Rule("early_stopping", HARMLESS, "for num_beams above 1, which is refused; --beam-width has its own rule"),
    Rule("renormalize_logits", HARMLESS, "the draw is from a normalized distribution anyway"),
    Rule("remove_invalid_values", HARMLESS, "it hides logits that are no numbers, which this engine reports"),
    Rule("bos_token_id", HARMLESS, "begins only an empty prompt, which is refused here"),
    Rule("pad_token_id", HARMLESS, "batches are not padded here"),
    Rule("decoder_start_token_id", HARMLESS, SEQ2SEQ),
    Rule("use_cache cache_implementation cache_config max_cache_len low_memory", HARMLESS, "--cache chooses the cache"),
    Rule("prefill_chunk_size compile_config disable_compile continuous_batching_config", HARMLESS, SPEED),
    Rule(
        "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate", HARMLESS, OUTPUT
    ),
    Rule(
        "use_mtp is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
        "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind "
        "assistant_ensemble_weight speculation_type",
        HARMLESS,
        SPECULATION,
    ),
    Rule("chat_format max_window_size", HARMLESS, "for the code of the first Qwen"),
    Rule("transformers_version _from_model_config _commit_hash", HARMLESS, NOTE),
)

TOKENIZER_RULES = (
    Rule("chat_template", HONOURED, "makes a prompt of messages, unless there is a chat_template.jinja"),
    Rule(
        "bos_token eos_token pad_token unk_token cls_token sep_token mask_token",
        HONOURED,
        "given to the template; eos_token ends an answer where no file names an eos_token_id",
    ),
    Rule("added_tokens_decoder", HONOURED, "must agree with tokenizer.json, else it is refused"),
    Rule(
        "additional_special_tokens extra_special_tokens",
        HONOURED,
        "must be special tokens of tokenizer.json, else they are refused",
    ),
    Rule("add_prefix_space", HONOURED, "of a Qwen2Tokenizer: must agree with tokenizer.json, else it is refused"),
    Rule("split_special_tokens", REFUSED, "chat templates need whole special tokens; set it to false", (False,)),
    Rule(
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        REFUSED,
        "it takes spaces out of answers; set it to false",
        (False,),
    ),
    Rule("fix_mistral_regex", REFUSED, "correct the pattern in tokenizer.json and remove it", (False,)),
    Rule("fast_tokenizer_files", REFUSED, "name the right one tokenizer.json and remove it", ([], ["tokenizer.json"])),
    Rule("init_inputs", REFUSED, "tokenizer.json holds the tokenizer; remove it", ([],)),
    Rule("model_specific_special_tokens", REFUSED, "write each token under a key of its own and remove it", ({},)),
    Rule("clean_up_tokenization_spaces", HARMLESS, "transformers ignores it for byte-pair tokenizers, which Qwen has"),
    Rule("add_bos_token add_eos_token", HARMLESS, "transformers reads the post-processor of tokenizer.json instead"),
    Rule(
        "tokenizer_class backend use_fast from_slow slow_tokenizer_class tokenizer_file vocab_file merges_file vocab "
        "merges gguf_file tokenizer tokenizer_object special_tokens_map_file files_loaded unk_id post_processor",
        HARMLESS,
        "tokenizer.json holds the tokenizer",
    ),
    Rule("errors", HARMLESS, "bytes that are no UTF-8 become U+FFFD"),
    Rule("legacy sp_model_kwargs spaces_between_special_tokens", HARMLESS, "for tokenizers without a tokenizer.json"),
    Rule("use_default_system_prompt", HARMLESS, "the template decides"),
    Rule("model_max_length max_len", HARMLESS, "transformers only warns; config.json and --max-context set the limit"),
    Rule(
        "padding padding_side pad_to_multiple_of pad_token_type_id max_length truncation truncation_side "
        "truncation_strategy stride tokenizer_padding tokenizer_truncation",
        HARMLESS,
        "prompts are neither padded nor cut here",
    ),
    Rule("model_input_names processor_class device_map verbose local_files_only is_local", HARMLESS, SPEED),
    Rule("chat_control_tokens", HARMLESS, "names tokens that a message must not spell; here no message can"),
    Rule("response_template response_schema", HARMLESS, "for reading an answer, which is left to the caller"),
    Rule("auto_map trust_remote_code", HARMLESS, "code of a model directory is never run"),
    Rule("name_or_path _commit_hash transformers_version unsloth_fixed", HARMLESS, NOTE),
)

TABLES = {CONFIG: CONFIG_RULES, ROPE: ROPE_RULES, GENERATION: GENERATION_RULES, TOKENIZER: TOKENIZER_RULES}
