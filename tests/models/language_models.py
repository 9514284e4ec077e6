"""Language models of transformers, small and built offline, with padded rows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.specimen import ROWS, Specimen, numbers

LENGTH, VOCABULARY = 12, 64
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}


def words() -> dict[str, Tensor]:
    """Rows of 6 to 12 words and padding; every fourth batch or so has a shard without padding."""
    lengths = torch.where(torch.arange(ROWS) % 3 > 0, LENGTH, 6 + torch.arange(ROWS) % 7)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = numbers(ROWS, LENGTH, below=VOCABULARY, least=3) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss  # type: ignore[no-any-return]


def of(
    auto: str,
    kind: str,
    config: Mapping[str, Any],
    data: Callable[[], dict[str, Tensor]] = words,
    forward: Callable[[nn.Module, Any], Any] = loss_of,
) -> Callable[[], Specimen]:
    """auto: the class of transformers that makes the model from a configuration of this kind."""

    def specimen() -> Specimen:
        import transformers

        made = transformers.AutoConfig.for_model(kind, **config)
        kind_of_model = getattr(transformers, auto)
        return Specimen(lambda: getattr(kind_of_model, "from_config", kind_of_model)(made), forward, data())

    return specimen


def causal(kind: str, config: Mapping[str, Any] = SIZES, **more: Any) -> Callable[[], Specimen]:
    return of("AutoModelForCausalLM", kind, {**config, **more})


def masked(kind: str, config: Mapping[str, Any] = SIZES, **more: Any) -> Callable[[], Specimen]:
    return of("AutoModelForMaskedLM", kind, {**config, **more})


def translating(kind: str, config: Mapping[str, Any] = ENCODER, **more: Any) -> Callable[[], Specimen]:
    return of("AutoModelForSeq2SeqLM", kind, {**config, **more})


GPT = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MODELS: dict[str, Callable[[], Specimen]] = {
    "gpt2": causal("gpt2", GPT),
    "openai-gpt": causal("openai-gpt", GPT),
    "gpt_neo": causal(
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
        },
    ),
    "gpt_neox": causal("gpt_neox"),
    "gptj": causal("gptj", {**GPT, "rotary_dim": 4}),
    "llama": causal("llama", GROUPED),
    "mistral": causal("mistral", GROUPED, sliding_window=6),
    "mixtral": causal("mixtral", EXPERTS, output_router_logits=True),
    "qwen2": causal("qwen2", GROUPED),
    "qwen3": causal("qwen3", GROUPED, head_dim=8),
    "qwen2_moe": causal(
        "qwen2_moe",
        GROUPED,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "gemma": causal("gemma", GROUPED, head_dim=8),
    "gemma2": causal("gemma2", GROUPED, head_dim=8, sliding_window=6),
    "phi": causal("phi"),
    "phi3": causal("phi3"),
    "opt": causal("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": causal(
        "bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 4, "n_head": 4, "pad_token_id": 0}
    ),
    "falcon": causal("falcon"),
    "mpt": causal(
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    ),
    "codegen": causal("codegen", {**GPT, "rotary_dim": 4}),
    "stablelm": causal("stablelm", partial_rotary_factor=0.5, num_key_value_heads=4),
    "olmo": causal("olmo"),
    "cohere": causal("cohere"),
    "granite": causal("granite"),
    "starcoder2": causal("starcoder2", GROUPED),
    "mamba": causal(
        "mamba",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "pad_token_id": 0},
    ),
    "xlnet": causal("xlnet", {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48}),
    "biogpt": causal("biogpt"),
    "xglm": causal(
        "xglm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "num_layers": 4,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
    "bert": masked("bert"),
    "roberta": masked("roberta"),
    "electra": masked("electra", embedding_size=16),
    "distilbert": masked(
        "distilbert",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 4,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
    "modernbert": masked("modernbert", cls_token_id=1, sep_token_id=2, local_attention=6),
    "albert": masked("albert", embedding_size=16),
    "deberta": masked("deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False),
    "deberta-v2": masked(
        "deberta-v2",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
    ),
    "mpnet": masked("mpnet"),
    "squeezebert": masked(
        "squeezebert",
        q_groups=4,
        k_groups=4,
        v_groups=4,
        post_attention_groups=1,
        intermediate_groups=4,
        output_groups=4,
        embedding_size=32,
    ),
    "mobilebert": masked("mobilebert", embedding_size=32, intra_bottleneck_size=16, use_bottleneck=True),
    "convbert": masked("convbert", embedding_size=16, head_ratio=2, conv_kernel_size=3),
    "nystromformer": masked("nystromformer", segment_means_seq_len=LENGTH, num_landmarks=LENGTH),
    "roformer": masked("roformer", embedding_size=32),
    "rembert": masked("rembert", input_embedding_size=16, output_embedding_size=24),
    "esm": masked("esm", mask_token_id=3, position_embedding_type="rotary"),
    "funnel": masked(
        "funnel",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [2, 2],
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
            "num_decoder_layers": 1,
        },
    ),
    "fnet": of(
        "AutoModelForMaskedLM", "fnet", SIZES, lambda: {k: v for k, v in words().items() if k != "attention_mask"}
    ),
    "longformer": masked("longformer", attention_window=4),
    "big_bird": masked("big_bird", attention_type="original_full"),
    "reformer": masked(
        "reformer",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "attention_head_size": 8,
            "feed_forward_size": 48,
            "attn_layers": ["local", "lsh"],
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "axial_pos_embds": False,
            "hidden_dropout_prob": 0.0,
            "lsh_attention_probs_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 64,
            "is_decoder": False,
            "hash_seed": 0,
        },
    ),
    "t5": translating("t5", T5),
    "mt5": translating("mt5", T5),
    "longt5": translating("longt5", {**T5, "local_radius": 3, "encoder_attention_type": "local"}),
    "switch_transformers": translating(
        "switch_transformers", {**T5, "num_experts": 4, "expert_capacity": 64, "router_z_loss_coef": 0.001}
    ),
    "bart": translating("bart"),
    "mbart": translating("mbart"),
    "pegasus": translating("pegasus"),
    "marian": translating("marian"),
    "blenderbot": translating("blenderbot"),
    "led": translating(
        "led",
        {
            **ENCODER,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
            "attention_window": 4,
        },
    ),
    "prophetnet": translating(
        "prophetnet",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            "ngram": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "m2m_100": translating("m2m_100"),
}
"""By name. As people train them: with padding, dropout and caches as their configurations have them."""
