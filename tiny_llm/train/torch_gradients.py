"""A step's gradients by PyTorch in bfloat16: on a CPU with matrix units some times faster than MLX's.

PyTorch compiles the functions of a layer here on first use, which takes a minute; whole steps follow at 4 to 5 times
MLX's speed on a processor with AMX. Weights, norms and sums stay float32.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from tiny_llm.config import ModelConfig
from tiny_llm.config.fields import require
from tiny_llm.train.batches import TrainingBatch
from tiny_llm.train.differentiable import HIDDEN
from tiny_llm.train.optimizer import NEWTON_SCHULZ, flatten
from tiny_llm.train.trainer import Trainer

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise ValueError('gradients: torch is not installed: pip install "tiny-llm[train]", or leave it out') from error

BF16 = torch.bfloat16
TorchTensor = Any  # torch.Tensor


def to_torch(array: mx.array) -> TorchTensor:
    """Copy an array."""
    return torch.from_numpy(np.array(array))


def to_mlx(tensor: TorchTensor) -> mx.array:
    """Copy a tensor."""
    return mx.array(tensor.detach().numpy())


def linear(x: TorchTensor, weight: TorchTensor) -> TorchTensor:
    """Multiply x (…, in) by weight (out, in), in bfloat16."""
    return functional.linear(x.to(BF16), weight.to(BF16))


def rotate(x: TorchTensor, cos: TorchTensor, sin: TorchTensor) -> TorchTensor:
    """Turn the halves of each head of x (B, T, H, D) by the angles of its token: cos and sin (B, T, 1, D/2)."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attend(q: TorchTensor, k: TorchTensor, v: TorchTensor, hidden: TorchTensor) -> TorchTensor:
    """Attention of q, k, v (B, H, T, D) → (B, H, T, D). hidden (B, 1, T, T) is added to the scores."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden)


def use_torch(trainer: Trainer) -> None:
    """Let a run take gradients and orthogonal matrices from PyTorch. Raises ValueError for a model that is refused."""
    trainer.differentiate = TorchGradients(trainer.config, trainer.settings.balance)
    trainer.optimizer.orthogonal = orthogonal
    trainer.library = "torch"


class TorchGradients:
    """Losses and gradients of a Qwen3 for a batch.

    Raises ValueError for a model with biases, without norms of q and k, with windows or scaled positions.
    """

    def __init__(self, config: ModelConfig, balance: float = 0.0):
        require(
            config.qk_norm and config.rope.kind == "default" and config.tie_word_embeddings,
            f"gradients: torch knows Qwen3 with tied embeddings and plain positions, found {config.model_type}; "
            "leave it out",
        )
        self.config = config
        self.balance = balance  # how much the balance loss of experts counts
        self._attention = torch.compile(self._attention_inputs, dynamic=True)
        self._rest = torch.compile(self._rest_of_layer, dynamic=True)
        self._experts = torch.compile(self._rest_with_experts, dynamic=True)
        self._losses = torch.compile(self._cross_entropy, dynamic=True)

    def __call__(self, weights: Any, batch: TrainingBatch) -> tuple[tuple[mx.array, mx.array], Any]:
        """Return (loss, loss on the model's own words) and the gradients, a tree as `weights`."""
        leaves = {name: to_torch(array).requires_grad_() for name, array in flatten(weights).items()}
        losses, balance = self.token_losses(leaves, batch)
        shares = to_torch(batch.weights)
        loss = (losses * shares).sum() / shares.sum()
        if balance:
            loss = loss + self.balance * sum(balance) / len(balance)
        loss.backward()
        own = (shares == 1).float()
        answers = (losses.detach() * own).sum() / own.sum().clamp(min=1)
        gradients = [(name, to_mlx(leaf.grad)) for name, leaf in leaves.items()]
        return (to_mlx(loss), to_mlx(answers)), tree_unflatten(gradients)

    def token_losses(
        self, weights: dict[str, TorchTensor], batch: TrainingBatch
    ) -> tuple[TorchTensor, list[TorchTensor]]:
        """Return -log p of each of the batch's R targets, (R,), and the balance loss of each layer with experts."""
        positions = to_torch(batch.positions)
        hidden = torch.where(to_torch(batch.visible), 0.0, HIDDEN).to(BF16)[:, None]
        frequencies = self.config.rope.theta ** (-torch.arange(0, self.config.head_dim, 2) / self.config.head_dim)
        angles = positions[:, :, None, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        x = functional.embedding(to_torch(batch.tokens).long(), weights["embed_tokens.weight"])
        balance = []
        for index in range(self.config.num_hidden_layers):
            layer = layer_of(weights, index)
            q, k, v = self._attention(x, layer, cos, sin)
            attended = attend(q, k, v, hidden)
            if "router" in layer:
                x, of_layer = self._experts(x, attended, layer)
                balance.append(of_layer)
            else:
                x = self._rest(x, attended, layer)
        x = x[to_torch(batch.at).long()]
        targets = to_torch(batch.targets).long()
        return self._losses(x, weights["norm.weight"], weights["embed_tokens.weight"], targets), balance

    def _norm(self, x: TorchTensor, weight: TorchTensor) -> TorchTensor:
        return functional.rms_norm(x.float(), (x.shape[-1],), weight, self.config.rms_norm_eps)

    def _attention_inputs(
        self, x: TorchTensor, layer: dict[str, TorchTensor], cos: TorchTensor, sin: TorchTensor
    ) -> tuple[TorchTensor, TorchTensor, TorchTensor]:
        """Compute q, k, v of a layer, each (B, H, T, D), from x (B·T, hidden): k and v once for each head of q."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        rows, length = cos.shape[:2]
        qkv = linear(self._norm(x, layer["input_layernorm"]), layer["qkv_proj"])
        q, k, v = qkv.view(rows, length, -1, self.config.head_dim).split([heads, kv_heads, kv_heads], 2)
        q = rotate(self._norm(q, layer["q_norm"]), cos, sin).to(BF16)
        k = rotate(self._norm(k, layer["k_norm"]), cos, sin).to(BF16)
        k, v = (part.transpose(1, 2).repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        return q.transpose(1, 2), k, v

    def _rest_of_layer(self, x: TorchTensor, attended: TorchTensor, layer: dict[str, TorchTensor]) -> TorchTensor:
        x = x + linear(attended.transpose(1, 2).reshape(x.shape[0], -1), layer["o_proj"])
        gate_up = linear(self._norm(x, layer["post_attention_layernorm"]), layer["gate_up_proj"])
        gate, up = gate_up.chunk(2, -1)
        return x + linear(functional.silu(gate) * up, layer["down_proj"])

    def _rest_with_experts(
        self, x: TorchTensor, attended: TorchTensor, layer: dict[str, TorchTensor]
    ) -> tuple[TorchTensor, TorchTensor]:
        """Compute the layer's output, with all experts as one wide MLP, and its balance loss."""
        moe = self.config.moe
        assert moe
        x = x + linear(attended.transpose(1, 2).reshape(x.shape[0], -1), layer["o_proj"])
        normed = self._norm(x, layer["post_attention_layernorm"])
        probabilities = linear(normed, layer["router"]).float().softmax(-1)
        top, chosen = probabilities.topk(moe.experts_per_token, -1)
        if moe.normalize:
            top = top / top.sum(-1, keepdim=True)
        nothing = torch.zeros_like(probabilities)
        shares = nothing.scatter(-1, chosen, top)  # (T, E)
        counts = nothing.scatter(-1, chosen, 1.0).sum(0)
        balance = moe.num_experts * (counts / counts.sum() * probabilities.mean(0)).sum()
        gate_up = linear(normed, layer["experts.gate_up_proj"].flatten(0, 1))
        gate, up = gate_up.view(-1, moe.num_experts, 2, moe.expert_size).unbind(2)
        inner = functional.silu(gate) * up * shares[..., None].to(BF16)
        down = layer["experts.down_proj"].transpose(0, 1).flatten(1)  # (hidden, E · I)
        return x + linear(inner.flatten(1), down), balance

    def _cross_entropy(
        self, x: TorchTensor, norm: TorchTensor, embedding: TorchTensor, targets: TorchTensor
    ) -> TorchTensor:
        logits = linear(self._norm(x, norm), embedding).float()
        return functional.cross_entropy(logits, targets, reduction="none")


def layer_of(weights: dict[str, TorchTensor], index: int) -> dict[str, TorchTensor]:
    """Return the weights of a layer by their names within it."""
    before = f"layers.{index}."
    own = [name for name in weights if name.startswith(before)]
    return {name.removeprefix(before).removesuffix(".weight"): weights[name] for name in own}


def orthogonal(g: mx.array, steps: int = 5) -> mx.array:
    """Compute `optimizer.orthogonal` in bfloat16, as its author does."""
    a, b, c = NEWTON_SCHULZ
    x = to_torch(g)
    x = x / (x.square().sum((1, 2), keepdim=True).sqrt() + 1e-7)
    x = x.to(BF16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    if tall:
        x = x.transpose(1, 2)
    return to_mlx(x.float().contiguous())
