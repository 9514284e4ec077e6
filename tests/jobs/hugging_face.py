"""Hugging Face models, unmodified, small and built offline."""

from typing import Any

import torch
from torch import Tensor, nn, optim
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM

import samestep

ROWS, LENGTH, VOCABULARY = 24, 12, 64


def words() -> Tensor:
    return torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def job(model: Any, forward: Any, data: dict[str, Tensor]) -> samestep.Job:
    return samestep.Job(
        model=model,
        forward=forward,
        data=data,
        optimizer=lambda params: optim.AdamW(params, lr=1e-3, fused=True),
        batch_size=16,
        shards=4,
        steps=3,
        epochs=9,
    )


def causal(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, use_cache=False).loss  # type: ignore[no-any-return]


def gpt2() -> samestep.Job:
    config = AutoConfig.for_model("gpt2", vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=4, n_head=4)
    x = words()
    return job(lambda: AutoModelForCausalLM.from_config(config), causal, {"input_ids": x, "labels": x})


def llama() -> samestep.Job:
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    x = words()
    return job(lambda: AutoModelForCausalLM.from_config(config), causal, {"input_ids": x, "labels": x})


def bert() -> samestep.Job:
    config = AutoConfig.for_model(
        "bert", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32,
    )  # fmt: skip
    x = words()
    mask = (torch.arange(LENGTH) < 6 + torch.arange(ROWS)[:, None] % 7).long()
    data = {"input_ids": x, "attention_mask": mask, "labels": x}
    return job(lambda: AutoModelForMaskedLM.from_config(config), lambda model, batch: model(**batch).loss, data)


def vit() -> samestep.Job:
    config = AutoConfig.for_model(
        "vit", hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=16,
        patch_size=4, num_channels=3, num_labels=5,
    )  # fmt: skip
    x = torch.randn(ROWS, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = {"pixel_values": x, "labels": torch.arange(ROWS) % 5}
    return job(
        lambda: AutoModelForImageClassification.from_config(config), lambda model, batch: model(**batch).loss, data
    )


def with_cache() -> samestep.Job:
    """Blocks hand on keys and values in an object that is no tensor."""
    found = gpt2()
    found.forward = lambda model, batch: model(**batch, use_cache=True).loss
    return found
