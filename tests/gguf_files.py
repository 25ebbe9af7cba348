"""Write GGUF files: any metadata, and tensors of every type, packed by rules of the format's own description.

Independent of the package that reads them. `unpack` is the oracle: each number by itself, as ggml-quants.c computes it.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from tests.support import make_model

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
TYPES["BF16"] = 30
SIZES = {  # numbers and bytes of a block
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22)},
    **{"Q5_1": (32, 24), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)},
}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 12


class Stored(NamedTuple):
    """A tensor as a file has it. `shape`: rows first. `kind`: a name in TYPES, or any number."""

    kind: str | int
    shape: Sequence[int]
    data: bytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Write a file. Metadata values are stored as `typed` says."""
    if alignment != 32:
        metadata = {"general.alignment": alignment, **metadata}
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [text(key), typed(value)]
    offset = 0
    blob = bytearray()
    for name, (kind, shape, data) in tensors.items():
        number = TYPES[kind] if isinstance(kind, str) else kind
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [text(name), dimensions, struct.pack("<IQ", number, offset)]
        blob += data + bytes(-len(data) % alignment)
        offset = len(blob)
    header = b"".join(parts)
    path.write_bytes(header + bytes(-len(header) % alignment) + blob)
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """A value with its type: bool, int (uint32, or int32 in a list), float (float32), str, or bytes as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    first = value[0] if value else 0
    if isinstance(first, str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    kind, letter = (FLOAT32, "f") if isinstance(first, float) else (INT32, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", ARRAY, kind, len(value), *value)


def pack(kind: str, numbers: np.ndarray) -> Stored:
    """Store a float32 array, each block rounded to the nearest that its scale and bias allow; K types at random."""
    shape, flat = numbers.shape, np.ascontiguousarray(numbers, np.float32).reshape(-1)
    if kind == "F32":
        return Stored(kind, shape, flat.tobytes())
    if kind == "F16":
        return Stored(kind, shape, flat.astype(np.float16).tobytes())
    if kind == "BF16":
        return Stored(kind, shape, np.array(mx.array(flat).astype(mx.bfloat16).view(mx.uint16)).tobytes())
    if kind.endswith("_K"):
        return Stored(kind, shape, random_blocks(kind, flat.size, float(np.abs(flat).max())))
    return Stored(kind, shape, b"".join(pack_block(kind, block) for block in flat.reshape(-1, 32)))


def pack_block(kind: str, block: np.ndarray) -> bytes:
    bits = int(kind[1])
    top = 2**bits - 1
    if kind == "Q8_0":
        scale = np.float16(np.abs(block).max() / 127)
        return scale.tobytes() + np.clip(np.round(block / (scale or 1)), -128, 127).astype(np.int8).tobytes()
    if kind.endswith("_0"):
        low = block[np.abs(block).argmax()]
        scale = np.float16(low / -(2 ** (bits - 1)))
        values = np.clip(np.round(block / (scale or 1)) + 2 ** (bits - 1), 0, top).astype(np.uint32)
        head = scale.tobytes()
    else:
        bias = np.float16(block.min())
        scale = np.float16((block.max() - block.min()) / top)
        values = np.clip(np.round((block - bias) / (scale or 1)), 0, top).astype(np.uint32)
        head = scale.tobytes() + bias.tobytes()
    if bits == 5:
        head += struct.pack("<I", sum(int(value >> 4) << i for i, value in enumerate(values)))
    return head + bytes(int(values[i] & 15 | (values[i + 16] & 15) << 4) for i in range(16))


def random_blocks(kind: str, count: int, largest: float, seed: int = 0) -> bytes:
    """Blocks of any type, random but for their float16 scales, which keep the numbers about as large as `largest`."""
    rng = np.random.default_rng([seed, count, TYPES[kind]])
    length, size = SIZES[kind]
    blocks = rng.integers(0, 256, (count // length, size), dtype=np.uint8)
    scale = {"Q4_K": 63 * 15, "Q5_K": 63 * 31, "Q6_K": 127 * 32}.get(kind, 2 ** int(kind[1]))
    halves = rng.uniform(0.2, 1, (len(blocks), 2)) * largest / scale
    places = {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}.get(kind, (0, 2))
    for i, place in enumerate(places):
        blocks[:, place : place + 2] = halves[:, i : i + 1].astype(np.float16).view(np.uint8)
    return blocks.tobytes()


def unpack(stored: Stored) -> np.ndarray:
    """The numbers of a tensor in float64, computed one by one."""
    assert isinstance(stored.kind, str)
    size = SIZES[stored.kind][1]
    numbers: list[float] = []
    for begin in range(0, len(stored.data), size):
        numbers += unpack_block(stored.kind, stored.data[begin : begin + size])
    assert len(numbers) == np.prod(stored.shape)
    return np.array(numbers).reshape(stored.shape)


def half(data: bytes, place: int) -> float:
    return float(np.frombuffer(data, np.float16, 1, place)[0])


def unpack_block(kind: str, b: bytes) -> list[float]:
    if kind == "F32":
        return [struct.unpack("<f", b)[0]]
    if kind == "F16":
        return [half(b, 0)]
    if kind == "BF16":
        return [struct.unpack("<f", b"\0\0" + b)[0]]
    if kind == "Q8_0":
        return [half(b, 0) * value for value in struct.unpack("<32b", b[2:])]
    if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        five, biased = kind[1] == "5", kind[3] == "1"
        nibbles = b[-16:]
        high = struct.unpack("<I", b[-20:-16])[0] if five else 0
        values = [(nibbles[i % 16] >> 4 * (i // 16) & 15) | (high >> i & 1) << 4 for i in range(32)]
        if biased:
            return [half(b, 0) * value + half(b, 2) for value in values]
        return [half(b, 0) * (value - (16 if five else 8)) for value in values]
    if kind == "Q6_K":
        return [q6_k(b, i) for i in range(256)]
    return [k_number(kind, b, i) for i in range(256)]


def k_number(kind: str, b: bytes, i: int) -> float:
    """Number i of a block of Q4_K or Q5_K."""
    group, place = divmod(i, 32)
    packed = b[4:16]
    if group < 4:
        scale, minimum = packed[group] & 63, packed[group + 4] & 63
    else:
        scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
        minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4
    nibbles = b[48:] if kind == "Q5_K" else b[16:]
    value = nibbles[group // 2 * 32 + place] >> 4 * (group % 2) & 15
    if kind == "Q5_K":
        value |= (b[16 + place] >> group & 1) << 4
    # the package rounds both products to float16, as MLX does
    return float(np.float16(half(b, 0) * scale)) * value - float(np.float16(half(b, 2) * minimum))


def q6_k(b: bytes, i: int) -> float:
    """Number i of a block of Q6_K, rounded to float16."""
    side, j = divmod(i, 128)
    quarter, place = divmod(j, 32)
    low = b[64 * side + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
    high = b[128 + 32 * side + place] >> 2 * quarter & 3
    scale = struct.unpack("<b", b[192 + i // 16 : 193 + i // 16])[0]
    return float(np.float16(half(b, 208) * scale * ((low | high << 4) - 32)))


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
}
TOKEN_TYPES = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "unused": 5, "byte": 6}


def gguf_name(name: str) -> str:
    path, _, kind = name.rpartition(".")
    if path in NAMES:
        return f"{NAMES[path]}.{kind}"
    _, _, layer, rest = path.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def side_by_side(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: the two of a rotary pair are neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tokenizer_metadata(tokenizer: Tokenizer, pre: str = "qwen2") -> dict[str, Any]:
    """The keys of a byte-level BPE, as llama.cpp's converter writes them."""
    stored = json.loads(tokenizer.to_str())
    tokens = dict(sorted((number, token) for token, number in tokenizer.get_vocab().items()))
    added = {token["id"]: token["special"] for token in stored["added_tokens"]}
    kinds = [TOKEN_TYPES["control" if added[i] else "user"] if i in added else TOKEN_TYPES["normal"] for i in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(tokens.values()),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in stored["model"]["merges"]],
    }


def model_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    arch = config["model_type"].replace("_", "")
    experts = {}
    if "num_experts" in config:
        experts = {
            f"{arch}.expert_count": config["num_experts"],
            f"{arch}.expert_used_count": config["num_experts_per_tok"],
            f"{arch}.expert_feed_forward_length": config["moe_intermediate_size"],
        }
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return {
        "general.architecture": arch,
        "general.name": "random",
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": config["rope_theta"],
        **({f"{arch}.rope.dimension_count": head_dim} if arch == "llama" else {}),
        **experts,
    }


class Twin(NamedTuple):
    """A GGUF file, and a dense directory with the same numbers in float32."""

    file: Path
    directory: Path


def make_twins(
    folder: Path,
    model_type: str,
    types: Mapping[str, str],
    *,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, Stored] | None = None,
    exact: bool = True,
    **config: Any,
) -> Twin:
    """Write a random model as both. `types`: that of each matrix by its name in the file, "" for all others.

    `metadata` and `extra` tensors are added to the GGUF file alone; None removes a key. Without `exact` the directory
    keeps its own numbers and packed tensors are random, which is faster.
    """
    directory = make_model(folder / "directory", model_type, **config)
    settings = json.loads((directory / "config.json").read_text())
    weights = mx.load(str(directory / "model.safetensors"))
    tensors: dict[str, Stored] = {}
    same: dict[str, mx.array] = {}
    for name, array in weights.items():
        numbers = np.array(array.astype(mx.float32))
        own = gguf_name(name)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(own.split(".")[-2])
        turned = model_type == "llama" and heads is not None
        if turned:
            numbers = side_by_side(numbers, settings[heads])
        kind = types.get(own.rpartition(".")[0], types[""]) if numbers.ndim > 1 else "F32"
        if not exact and kind.startswith("Q"):
            tensors[own] = Stored(kind, numbers.shape, random_blocks(kind, numbers.size, float(np.abs(numbers).max())))
            continue
        tensors[own] = pack(kind, numbers)
        if not exact:
            continue
        numbers = unpack(tensors[own]).astype(np.float32)
        if turned:  # back again: q (heads · D) with pairs half a head apart
            pairs = numbers.reshape(settings[heads], -1, 2, *numbers.shape[1:])
            numbers = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(numbers.shape)
        same[name] = mx.array(numbers)
    if exact:
        mx.save_safetensors(str(directory / "model.safetensors"), same)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    generation = json.loads((directory / "generation_config.json").read_text())
    template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    keys = {
        **model_metadata(settings),
        **tokenizer_metadata(tokenizer),
        "tokenizer.ggml.eos_token_id": generation["eos_token_id"][0],
        "tokenizer.ggml.padding_token_id": generation["pad_token_id"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
        **(metadata or {}),
    }
    keys = {key: value for key, value in keys.items() if value is not None}
    return Twin(write_gguf(folder / "model.gguf", keys, {**tensors, **(extra or {})}), directory)
