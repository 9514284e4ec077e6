"""Models of torchvision, timm, vit-pytorch, x-transformers, PyTorch Geometric, diffusers and libraries for tables."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.specimen import ROWS, Specimen, classes, drawn, numbers

Entries = dict[str, Callable[[], Specimen]]


def classified(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def pictured(
    model: Callable[[], nn.Module], side: int, forward: Callable[[nn.Module, Any], Any] = classified
) -> Specimen:
    return Specimen(model, forward, (drawn(ROWS, 3, side, side), classes()))


# ------------------------------------------------------------------------------------------------------- torchvision


def vision(name: str, side: int = 64, **options: Any) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        from torchvision import models

        return pictured(lambda: getattr(models, name)(num_classes=3, weights=None, **options), side)

    return specimen


def vision_class(path: str, side: int = 32, **options: Any) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import importlib

        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(f"torchvision.models.{module}"), name)
        return pictured(lambda: kind(num_classes=3, **options), side)

    return specimen


def small_backbone() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 32, 3, 2, 1), nn.ReLU())
    body.out_channels = 32
    return body


def segmentation(name: str) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        from torchvision.models import segmentation as found
        from torchvision.models._utils import IntermediateLayerGetter
        from torchvision.models.segmentation.deeplabv3 import DeepLabHead
        from torchvision.models.segmentation.fcn import FCNHead

        def made() -> nn.Module:
            body = IntermediateLayerGetter(small_backbone(), {"3": "out"})
            return found.FCN(body, FCNHead(32, 3)) if name == "fcn" else found.DeepLabV3(body, DeepLabHead(32, 3))

        return Specimen(
            made,
            lambda model, batch: F.cross_entropy(model(batch[0])["out"], batch[1]),
            (drawn(ROWS, 3, 32, 32), numbers(ROWS, 32, 32, below=3)),
        )

    return specimen


def detector(name: str) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        from torchvision.models import detection

        def made() -> nn.Module:
            anchors = detection.anchor_utils.AnchorGenerator(((8, 16),), ((1.0,),))
            if name == "fcos":
                anchors = detection.anchor_utils.AnchorGenerator(((8,),), ((1.0,),))
                return detection.FCOS(small_backbone(), 3, min_size=32, max_size=32, anchor_generator=anchors)
            return detection.RetinaNet(small_backbone(), 3, min_size=32, max_size=32, anchor_generator=anchors)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            targets = [{"boxes": b, "labels": y} for b, y in zip(batch[1], batch[2], strict=True)]
            return sum(model(list(batch[0]), targets).values()) / len(targets)

        corner = 16 * torch.rand(ROWS, 2, 2, generator=torch.Generator().manual_seed(0))
        return Specimen(
            made,
            loss,
            (drawn(ROWS, 3, 32, 32).sigmoid(), torch.cat([corner, corner + 12], 2), numbers(ROWS, 2, below=3, least=1)),
        )

    return specimen


TORCHVISION: Entries = {
    "tv resnext": lambda: resnext(),
    "tv squeezenet": vision("squeezenet1_1"),
    "tv densenet": vision_class("densenet.DenseNet", growth_rate=4, block_config=(2, 2), num_init_features=8),
    "tv mobilenet_v3": vision("mobilenet_v3_small", 96),
    "tv shufflenet": vision("shufflenet_v2_x0_5"),
    "tv regnet": lambda: regnet(),
    "tv mnasnet": vision("mnasnet0_5", 96),
    "tv vit": vision_class(
        "vision_transformer.VisionTransformer",
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=48,
        dropout=0.1,
    ),
    "tv swin": vision_class(
        "swin_transformer.SwinTransformer",
        patch_size=[2, 2],
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=[4, 4],
    ),
    "tv maxvit": vision_class(
        "maxvit.MaxVit",
        64,
        input_size=(64, 64),
        stem_channels=8,
        partition_size=2,
        block_channels=[8, 16],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.1,
    ),
    "tv convnext": lambda: convnext(),
    "tv fcn": segmentation("fcn"),
    "tv deeplab": segmentation("deeplab"),
    "tv retinanet": detector("retinanet"),
    "tv fcos": detector("fcos"),
}


def convnext() -> Specimen:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return pictured(
        lambda: ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=3, stochastic_depth_prob=0.1
        ),
        32,
    )


def regnet() -> Specimen:
    from torchvision.models.regnet import BlockParams, RegNet

    params = BlockParams(
        depths=[1, 1],
        widths=[16, 32],
        group_widths=[8, 8],
        bottleneck_multipliers=[1.0, 1.0],
        strides=[2, 2],
        se_ratio=0.25,
    )
    return pictured(lambda: RegNet(params, num_classes=3, stem_width=8), 64)


def resnext() -> Specimen:
    from torchvision.models.resnet import Bottleneck, ResNet

    return pictured(lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3, groups=4, width_per_group=8), 64)


# -------------------------------------------------------------------------------------------------------------- timm


def timm(name: str, side: int, **options: Any) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import timm as library

        return pictured(lambda: library.create_model(name, num_classes=3, **options), side)

    return specimen


TIMM: Entries = {
    f"timm {name}": timm(name, side, **options)
    for name, side, options in (
        ("test_resnet", 64, {}),
        ("test_vit", 32, {"img_size": 32, "drop_path_rate": 0.1}),
        ("test_vit2", 32, {"img_size": 32}),
        ("test_vit3", 32, {"img_size": 32}),
        ("test_convnext", 64, {}),
        ("test_convnext2", 64, {}),
        ("test_efficientnet", 96, {}),
        ("test_efficientnet_ln", 64, {}),
        ("test_byobnet", 64, {}),
        ("test_nfnet", 64, {}),
        ("test_mambaout", 64, {}),
        ("ghostnet_050", 96, {}),
        ("lcnet_050", 96, {}),
        ("edgenext_xx_small", 96, {}),
        ("cait_xxs24_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}),
        ("xcit_nano_12_p16_224", 64, {"img_size": 64, "depth": 2, "embed_dim": 32}),
        ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 48}),
        ("beitv2_base_patch16_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4}),
        ("eva02_tiny_patch14_224", 28, {"img_size": 28, "depth": 2, "embed_dim": 48}),
        (
            "swinv2_tiny_window8_256",
            64,
            {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)},
        ),
        ("starnet_s1", 64, {"depths": (1, 1, 1, 1), "base_dim": 12}),
    )
}


def mobile_one() -> Specimen:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(
        ByoBlockCfg(type="one", d=1, c=c, s=2, gs=gs, block_kwargs={"num_conv_branches": 2})
        for c, gs in ((16, 1), (32, 1))
    )
    config = ByoModelCfg(blocks=blocks, stem_type="one", stem_chs=8)
    return pictured(lambda: ByobNet(config, num_classes=3), 32)


def mixing(block: str) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        from timm.models import mlp_mixer

        options = {"img_size": 64, "num_blocks": 2, "embed_dim": 32, "block_layer": getattr(mlp_mixer, block)}
        if block == "ResBlock":
            options |= {"mlp_ratio": 4, "norm_layer": mlp_mixer.Affine}
        if block == "SpatialGatingBlock":
            options |= {"mlp_ratio": 6, "mlp_layer": mlp_mixer.GatedMlp}
        return pictured(lambda: mlp_mixer.MlpMixer(num_classes=3, **options), 64)

    return specimen


TIMM |= {
    "timm mixer": mixing("MixerBlock"),
    "timm resmlp": mixing("ResBlock"),
    "timm gmlp": mixing("SpatialGatingBlock"),
    "timm mobileone": mobile_one,
}


# ------------------------------------------------------------------------------------------ vit-pytorch, x-transformers


def vit_pytorch(name: str, module: str = "", side: int = 32, **options: Any) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import importlib

        found = getattr(importlib.import_module(f"vit_pytorch.{module}" if module else "vit_pytorch"), name)
        return pictured(lambda: found(num_classes=3, **options), side)

    return specimen


SMALL: Mapping[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}

VIT_PYTORCH: Entries = {
    "vp vit": vit_pytorch("ViT", **SMALL, dropout=0.1),
    "vp simple vit": vit_pytorch("SimpleViT", **SMALL),
    "vp deepvit": vit_pytorch("DeepViT", "deepvit", **SMALL),
    "vp cait": vit_pytorch("CaiT", "cait", **SMALL, cls_depth=1, layer_dropout=0.1),
    "vp parallel vit": vit_pytorch("ViT", "parallel_vit", **SMALL, num_parallel_branches=2),
    "vp nest": vit_pytorch(
        "NesT", "nest", image_size=32, patch_size=4, dim=16, heads=2, num_hierarchies=2, block_repeats=(1, 1)
    ),
    "vp cct": vit_pytorch(
        "CCT",
        "cct",
        img_size=32,
        embedding_dim=32,
        n_conv_layers=1,
        num_layers=2,
        num_heads=4,
        mlp_ratio=2.0,
        positional_embedding="learnable",
    ),
}


def sequence(
    make: Callable[[Any], nn.Module], forward: Callable[[nn.Module, Any], Any] | None = None
) -> Callable[[], Specimen]:
    def next_word(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    def specimen() -> Specimen:
        import x_transformers

        return Specimen(
            lambda: make(x_transformers),
            forward or next_word,
            (numbers(ROWS, 12, below=64), numbers(ROWS, 12, below=64, seed=1)),
        )

    return specimen


def decoder(**options: Any) -> Callable[[Any], nn.Module]:
    return lambda x: x.TransformerWrapper(
        num_tokens=64, max_seq_len=16, attn_layers=x.Decoder(dim=32, depth=3, heads=4, attn_dim_head=8, **options)
    )


X_TRANSFORMERS: Entries = {
    "xt decoder": sequence(decoder()),
    "xt rotary": sequence(decoder(rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True)),
    "xt alibi": sequence(decoder(alibi_pos_bias=True, alibi_num_heads=2)),
    "xt t5 bias": sequence(decoder(rel_pos_bias=True, sandwich_norm=True)),
    "xt macaron": sequence(decoder(macaron=True, attn_dropout=0.1, ff_dropout=0.1)),
    "xt talking heads": sequence(
        decoder(attn_pre_talking_heads=True, attn_post_talking_heads=True, gate_residual=True)
    ),
    "xt layer dropout": sequence(decoder(layer_dropout=0.3)),
    "xt autoregressive": sequence(
        lambda x: x.AutoregressiveWrapper(decoder()(x)), lambda model, batch: model(batch[0])
    ),
    "xt encoder decoder": sequence(
        lambda x: x.XTransformer(
            dim=32,
            enc_num_tokens=64,
            enc_depth=2,
            enc_heads=4,
            enc_max_seq_len=12,
            dec_num_tokens=64,
            dec_depth=2,
            dec_heads=4,
            dec_max_seq_len=12,
            tie_token_emb=True,
        ),
        lambda model, batch: model(batch[0], batch[1]),
    ),
    "xt vit": lambda: pictured(x_vit, 32),
}


def x_vit() -> nn.Module:
    import x_transformers as x

    return x.ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=3, attn_layers=x.Encoder(dim=32, depth=3, heads=4, attn_dim_head=8)
    )


# ------------------------------------------------------------------------------------------------ PyTorch Geometric


class GraphClassifier(nn.Module):
    def __init__(self, body: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.body, self.out = body, nn.Linear(width, 3)

    def forward(self, batch: Any) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        return self.out(global_mean_pool(self.body(batch.x, batch.edge_index), batch.batch))


def graph(name: str, **options: Any) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import torch_geometric.nn as library
        from torch_geometric.data import Batch, Data

        found = []
        for i in range(ROWS):
            n = 3 + i % 4
            ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
            found.append(
                Data(x=drawn(n, 6, seed=i), edge_index=torch.cat([ring, ring.flip(0)], 1), y=torch.tensor([i % 3]))
            )

        def made():
            return GraphClassifier(
                getattr(library, name)(in_channels=6, hidden_channels=16, num_layers=3, out_channels=16, **options)
            )

        return Specimen(made, lambda model, batch: F.cross_entropy(model(batch), batch.y), found, Batch.from_data_list)

    return specimen


GEOMETRIC: Entries = {
    "pyg gcn": graph("GCN"),
    "pyg sage": graph("GraphSAGE"),
    "pyg gat": graph("GAT", heads=2, dropout=0.1),
    "pyg gin": graph("GIN", norm="batch_norm"),
    "pyg pna": graph("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 0, 4])),
    "pyg edge conv": graph("EdgeCNN"),
}


# --------------------------------------------------------------------------------------------------------- diffusers


def noised(side: int = 16, channels: int = 3, condition: str = "") -> tuple[Callable[[nn.Module, Any], Tensor], Any]:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        noise, t = torch.randn_like(batch["x"]), torch.randint(0, 100, (len(batch["x"]),))
        more = {condition: batch["more"]} if condition else {}
        found = model(batch["x"] + noise, timestep=t, **more).sample
        return F.mse_loss(found[:, :channels], noise)

    more = numbers(ROWS, below=3) if condition == "class_labels" else drawn(ROWS, 5, 16, seed=1)
    return loss, {"x": drawn(ROWS, channels, side, side), "more": more}


def diffused(
    name: str, condition: str = "", side: int = 16, channels: int = 3, **options: Any
) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import diffusers

        loss, data = noised(side, channels, condition)
        return Specimen(lambda: getattr(diffusers, name)(**options), loss, data)

    return specimen


def autoencoder(name: str, **options: Any) -> Callable[[], Specimen]:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if name == "VQModel":
            out = model(batch["x"])
            return F.mse_loss(out.sample, batch["x"]) + out.commit_loss.mean()
        found = model.encode(batch["x"]).latent_dist
        return F.mse_loss(model.decode(found.sample()).sample, batch["x"]) + 1e-3 * found.kl().mean()

    def specimen() -> Specimen:
        import diffusers

        return Specimen(lambda: getattr(diffusers, name)(**options), loss, {"x": drawn(ROWS, 3, 16, 16)})

    return specimen


BLOCKS: Mapping[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}

DIFFUSERS: Entries = {
    "diffusers unet": diffused(
        "UNet2DModel",
        sample_size=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **BLOCKS,
    ),
    "diffusers conditional unet": diffused(
        "UNet2DConditionModel",
        "encoder_hidden_states",
        channels=4,
        sample_size=16,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **BLOCKS,
    ),
    "diffusers dit": diffused(
        "DiTTransformer2DModel",
        "class_labels",
        channels=4,
        sample_size=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        norm_num_groups=4,
        num_embeds_ada_norm=100,
    ),
    "diffusers pixart": diffused(
        "PixArtTransformer2DModel",
        "encoder_hidden_states",
        channels=4,
        sample_size=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        caption_channels=16,
        cross_attention_dim=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    ),
    "diffusers vae": autoencoder(
        "AutoencoderKL",
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **BLOCKS,
    ),
    "diffusers vq": autoencoder(
        "VQModel",
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        **BLOCKS,
    ),
}


# ----------------------------------------------------------------------------------------------------------- tables


def tabnet() -> Specimen:
    from pytorch_tabnet.tab_network import TabNet

    def made() -> nn.Module:
        # its matrix of groups is a plain attribute
        return TabNet(8, 3, n_d=8, n_a=8, n_steps=3, virtual_batch_size=2, group_attention_matrix=torch.eye(8))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        out, sparse = model(batch[0])
        return F.cross_entropy(out, batch[1]) - 1e-3 * sparse

    return Specimen(made, loss, (drawn(ROWS, 8), classes()))


def revisited(name: str) -> Callable[[], Specimen]:
    def specimen() -> Specimen:
        import rtdl_revisiting_models as library

        def made() -> nn.Module:
            if name == "ft":
                return library.FTTransformer(
                    n_cont_features=4,
                    cat_cardinalities=[10, 10],
                    d_out=3,
                    n_blocks=2,
                    d_block=32,
                    attention_n_heads=4,
                    attention_dropout=0.1,
                    ffn_d_hidden=None,
                    ffn_d_hidden_multiplier=4 / 3,
                    ffn_dropout=0.1,
                    residual_dropout=0.0,
                )
            return library.ResNet(
                d_in=4,
                d_out=3,
                n_blocks=2,
                d_block=32,
                d_hidden=48,
                d_hidden_multiplier=None,
                dropout1=0.1,
                dropout2=0.0,
            )

        forward = (
            (lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]))
            if name == "ft"
            else (lambda m, b: F.cross_entropy(m(b[0]), b[2]))
        )
        return Specimen(made, forward, (drawn(ROWS, 4), numbers(ROWS, 2, below=10), classes()))

    return specimen


TABNET: Entries = {"tabnet": tabnet}
REVISITED: Entries = {"rtdl ft-transformer": revisited("ft"), "rtdl resnet": revisited("resnet")}
