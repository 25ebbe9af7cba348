"""The settings of a mixture of experts, which replaces a layer's MLP, from config.json."""

from dataclasses import dataclass

from tiny_llm.config.fields import JsonFields, as_json, is_integer, require


@dataclass(frozen=True)
class MoeConfig:
    """The shape of the layers with experts (arXiv:1701.06538). Sizes are in elements."""

    num_experts: int
    experts_per_token: int
    expert_size: int  # intermediate size of one expert
    normalize: bool  # divide a token's shares by their sum; otherwise they are probabilities among all experts
    layers: tuple[int, ...]  # the layers with experts; the others have a dense MLP
    shared_size: int | None = None  # intermediate size of the expert that every token passes, None without one

    @classmethod
    def from_hf(cls, config: JsonFields, model_type: str, num_layers: int) -> "MoeConfig | None":
        """Read the settings. Returns None where no layer has experts.

        Raises ValueError naming file, key, expected and found.
        """
        is_qwen2 = model_type == "qwen2_moe"
        num_experts = _num_experts(config)
        step = config.integer("decoder_sparse_step", 1)
        dense = _dense_layers(config, num_layers)
        layers = tuple(i for i in range(num_layers) if (i + 1) % step == 0 and i not in dense)
        if num_experts == 0 or not layers:
            return None
        chosen = config.integer("num_experts_per_tok")
        require(
            chosen <= num_experts,
            f"{config.source}: num_experts_per_tok: expected at most num_experts ({num_experts}), found {chosen}",
        )
        return cls(
            num_experts=num_experts,
            experts_per_token=chosen,
            expert_size=config.integer("moe_intermediate_size"),
            normalize=config.flag("norm_topk_prob", False),
            layers=layers,
            shared_size=config.integer("shared_expert_intermediate_size") if is_qwen2 else None,
        )

    def weights_met(self, hidden_size: int) -> int:
        """Return how many weights of a layer a token is multiplied with: router, chosen experts, shared expert."""
        router = hidden_size * self.num_experts
        expert = 3 * hidden_size * self.expert_size
        met = router + self.experts_per_token * expert
        if self.shared_size:
            gate = hidden_size
            met += 3 * hidden_size * self.shared_size + gate
        return met

    def further_weights(self, hidden_size: int, rows: int) -> float:
        """Return how many weights of experts a step of `rows` tokens reads beyond those of one token, in all layers.

        The number is the mean for choices that are even and independent; experts of several tokens are read once.
        """
        chance_of_none = (1 - self.experts_per_token / self.num_experts) ** rows  # that no row chooses a given expert
        read = self.num_experts * (1 - chance_of_none)
        further = read - self.experts_per_token
        return len(self.layers) * further * 3 * hidden_size * self.expert_size


def _num_experts(config: JsonFields) -> int:
    """Return `num_experts`, or `num_local_experts` if only that is set. Raises ValueError if they differ."""
    names = [name for name in ("num_experts", "num_local_experts") if config.data.get(name) is not None]
    values = {config.integer(name, low=0, high=100_000) for name in names}
    require(
        len(values) < 2,
        f"{config.source}: num_local_experts: expected num_experts ({config.data.get('num_experts')}), "
        f"found {config.data.get('num_local_experts')}; remove one of them",
    )
    return values.pop() if values else config.integer("num_experts")


def _dense_layers(config: JsonFields, num_layers: int) -> list[int]:
    """Return the numbers of the layers that have a dense MLP whatever `decoder_sparse_step` says."""
    found = config.data.get("mlp_only_layers")
    if found is None:
        return []
    if not isinstance(found, list) or any(not is_integer(i) or not 0 <= i < num_layers for i in found):
        raise ValueError(
            f"{config.source}: mlp_only_layers: expected a list of layers from 0 to {num_layers - 1}, "
            f"found {as_json(found)}"
        )
    return found
