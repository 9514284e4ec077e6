"""Models of transformers for images, sound, both with text, and time series; small and built offline."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.language_models import SIZES, of, words
from models.specimen import ROWS, Specimen, classes, drawn, numbers

VISION: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "num_labels": 3,
}
SOUND = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_labels": 3,
    "mask_time_prob": 0.0,
}


def pictures(side: int = 16) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": drawn(ROWS, 3, side, side), "labels": classes()}


def image(kind: str, side: int = 16, config: Mapping[str, Any] | None = None, **more: Any) -> Callable[[], Specimen]:
    base = {"num_labels": 3} if config is None else config
    return of("AutoModelForImageClassification", kind, {**base, **more}, pictures(side))


def pair_of_towers(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cosine of each pair, without negatives: the loss of a row depends on that row alone."""
    out = model(**batch)
    return (1 - nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)).mean()


def text_and_picture() -> dict[str, Tensor]:
    both = words() | pictures()()
    return {key: both[key] for key in ("input_ids", "attention_mask", "pixel_values")}


def question_of_picture() -> dict[str, Tensor]:
    return text_and_picture() | {"labels": nn.functional.one_hot(classes(), 3).float()}


def heard() -> dict[str, Tensor]:
    return {"input_values": drawn(ROWS, 400), "labels": classes()}


def spoken() -> dict[str, Tensor]:
    return {"input_features": drawn(ROWS, 8, 24), "labels": numbers(ROWS, 6, below=64, least=3)}


def found() -> dict[str, Tensor]:
    """Two boxes for each picture, as centre and size."""
    boxes = 0.3 + 0.2 * torch.rand(ROWS, 2, 4, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": drawn(ROWS, 3, 32, 32), "class_labels": numbers(ROWS, 2, below=3), "boxes": boxes}


def detection(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    labels = [{"class_labels": c, "boxes": b} for c, b in zip(batch["class_labels"], batch["boxes"], strict=True)]
    return model(pixel_values=batch["pixel_values"], labels=labels).loss  # type: ignore[no-any-return]


def per_pixel(side: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": drawn(ROWS, 3, side, side), "labels": numbers(ROWS, side, side, below=3)}


def series(length: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"past_values": drawn(ROWS, length, 2), "future_values": drawn(ROWS, 4, 2, seed=1)}


def clips() -> dict[str, Tensor]:
    return {"pixel_values": drawn(ROWS, 4, 3, 16, 16), "labels": classes()}


STAGES = {"num_labels": 3, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
SMALL_RESNET = {"num_labels": 3, "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TOWERS = {
    "text_config": {**SIZES, "projection_dim": 16},
    "vision_config": {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 5,
    "num_labels": 3,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}


def detr() -> Specimen:
    import transformers

    backbone = transformers.ResNetConfig(**SMALL_RESNET, out_features=["stage4"])
    config = transformers.DetrConfig(**DETR, backbone_config=backbone)
    return Specimen(lambda: transformers.DetrForObjectDetection(config), detection, found())


MODELS: dict[str, Callable[[], Specimen]] = {
    "vit": image("vit", config=VISION),
    "deit": of("DeiTForImageClassification", "deit", VISION, pictures(16)),
    "beit": image("beit", config=VISION, use_relative_position_bias=True),
    "dinov2": image("dinov2", config=VISION),
    "swin": image("swin", 32, image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "swinv2": image(
        "swinv2", 32, image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4
    ),
    "convnext": image("convnext", 32, config=STAGES, drop_path_rate=0.1),
    "convnextv2": image("convnextv2", 32, config=STAGES),
    "hf-resnet": image("resnet", 64, config=SMALL_RESNET),
    "regnet": image("regnet", 64, config=SMALL_RESNET, groups_width=8),
    "poolformer": image(
        "poolformer", 32, config=STAGES, patch_sizes=[3, 3, 3, 3], strides=[2, 2, 2, 2], padding=[1, 1, 1, 1]
    ),
    "pvt": image(
        "pvt",
        32,
        image_size=32,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "levit": of(
        "LevitForImageClassification",
        "levit",
        {
            "num_labels": 3,
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        pictures(64),
    ),
    "mobilevit": image(
        "mobilevit", 64, image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 24, 32, 32, 32]
    ),
    "mobilenet_v2": image("mobilenet_v2", 96, depth_multiplier=0.25, image_size=96),
    "efficientnet": image(
        "efficientnet", 96, image_size=96, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
    ),
    "focalnet": image(
        "focalnet", 32, image_size=32, embed_dim=8, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]
    ),
    "segformer": image(
        "segformer", 32, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]
    ),
    "segformer-pixels": of(
        "AutoModelForSemanticSegmentation",
        "segformer",
        {
            "num_labels": 3,
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
        per_pixel(32),
    ),
    "vit_mae": of(
        "AutoModelForPreTraining",
        "vit_mae",
        {
            **VISION,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 24,
        },
        lambda: {"pixel_values": drawn(ROWS, 3, 16, 16)},
    ),
    "videomae": of("AutoModelForVideoClassification", "videomae", {**VISION, "num_frames": 4}, clips),
    "timesformer": of("AutoModelForVideoClassification", "timesformer", {**VISION, "num_frames": 4}, clips),
    "clip": of("AutoModel", "clip", TOWERS, text_and_picture, pair_of_towers),
    "siglip": of("AutoModel", "siglip", TOWERS, text_and_picture, pair_of_towers),
    "vilt": of(
        "ViltForQuestionAnswering",
        "vilt",
        {**SIZES, **VISION, "num_labels": 3, "max_position_embeddings": 64},
        question_of_picture,
    ),
    "detr": detr,
    "yolos": of(
        "AutoModelForObjectDetection",
        "yolos",
        {**VISION, "image_size": [32, 32], "num_detection_tokens": 5},
        found,
        detection,
    ),
    "wav2vec2": of("AutoModelForAudioClassification", "wav2vec2", SOUND, heard),
    "hubert": of("AutoModelForAudioClassification", "hubert", SOUND, heard),
    "wavlm": of("AutoModelForAudioClassification", "wavlm", SOUND, heard),
    "whisper": of(
        "AutoModelForSpeechSeq2Seq",
        "whisper",
        {
            "vocab_size": 64,
            "num_mel_bins": 8,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "d_model": 32,
            "max_source_positions": 12,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        spoken,
    ),
    "audio-spectrogram-transformer": of(
        "AutoModelForAudioClassification",
        "audio-spectrogram-transformer",
        {**VISION, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4},
        lambda: {"input_values": drawn(ROWS, 24, 16), "labels": classes()},
    ),
    "patchtst": of(
        "PatchTSTForPrediction",
        "patchtst",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "prediction_length": 4,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 24,
        },
        series(16),
    ),
    "patchtsmixer": of(
        "PatchTSMixerForPrediction",
        "patchtsmixer",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "prediction_length": 4,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "num_layers": 2,
        },
        series(16),
    ),
    "decision_transformer": of(
        "DecisionTransformerModel",
        "decision_transformer",
        {"state_dim": 3, "act_dim": 2, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 20, "vocab_size": 1},
        lambda: {
            "states": drawn(ROWS, 5, 3),
            "actions": drawn(ROWS, 5, 2, seed=1),
            "rewards": drawn(ROWS, 5, 1, seed=2),
            "returns_to_go": drawn(ROWS, 5, 1, seed=3),
            "timesteps": torch.arange(5).expand(ROWS, 5).clone(),
            "attention_mask": torch.ones(ROWS, 5),
        },
        lambda model, batch: (model(**batch).action_preds - batch["actions"]).square().mean(),
    ),
}
