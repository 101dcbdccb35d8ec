"""Tiny detectors of eight families of transformers, with random weights, offline; a batch and a training step."""

import pytest
import torch

from benchmarks.torchvision_without_extension import make_importable
from frameworks import need, painted

need("transformers")
make_importable()  # a torchvision that does not import keeps transformers from importing its models

import transformers  # noqa: E402

NAMES = {0: "car", 1: "plate", 2: "tree"}
CLASSES = {"id2label": NAMES, "label2id": {name: label for label, name in NAMES.items()}}
PAIRS = {"plate": "car"}


def resnet(kind, *stages: str):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return kind(**sizes, out_features=list(stages))


def real_time(name: str, backbone=transformers.RTDetrResNetConfig):
    """RT-DETR, its second version, D-FINE."""
    config = getattr(transformers, f"{name}Config")(
        backbone_config=resnet(backbone, "stage2", "stage3", "stage4"),
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        num_queries=20,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        num_denoising=10,
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def detr(name: str, *stages: str, **options):
    """DETR, and its conditional and deformable forms."""
    config = getattr(transformers, f"{name}Config")(
        backbone_config=resnet(transformers.ResNetConfig, *stages),
        use_timm_backbone=False,
        backbone=None,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        auxiliary_loss=True,
        **options,
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def light_weight(name: str, backbone, **options):
    """LW-DETR and RF-DETR: groups of queries, and a plain transformer as the backbone."""
    backbone = backbone(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2],
        **options,
    )
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone,
        num_queries=10,
        d_model=32,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        group_detr=2,
        num_feature_levels=1,
        **({"projector_scale_factors": [1.0]} if name == "LwDetr" else {}),
        **CLASSES,
    )
    return getattr(transformers, f"{name}ForObjectDetection")(config)


FAMILIES = {
    "rt_detr": lambda: real_time("RTDetr"),
    "rt_detr_v2": lambda: real_time("RTDetrV2"),
    "d_fine": lambda: real_time("DFine"),
    "detr": lambda: detr("Detr", "stage4"),
    "conditional_detr": lambda: detr("ConditionalDetr", "stage4"),
    "deformable_detr": lambda: detr("DeformableDetr", "stage2", "stage3", "stage4", num_feature_levels=3),
    "lw_detr": lambda: light_weight(
        "LwDetr", transformers.LwDetrViTConfig, pretrain_image_size=64, num_windows=4, window_block_indices=[0]
    ),
    "rf_detr": lambda: light_weight("RfDetr", transformers.RfDetrDinov2Config, num_windows=2),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, seed: int = 0):
    torch.manual_seed(seed)
    return FAMILIES[family]().train()


def batch(dtype: torch.dtype = torch.float32) -> dict:
    """Two images: a car with its plate, a plate of no car and a tree; and nothing but a car."""
    torch.manual_seed(0)
    # Not on the grid of a model's first proposals, where edges would touch: torch.clamp has a derivative there.
    boxes = [
        [0.2013, 0.3029, 0.2071, 0.2043],
        [0.2917, 0.3031, 0.0973, 0.0519],
        [0.9011, 0.1007, 0.0983, 0.0507],
        [0.5023, 0.6989, 0.2977, 0.3019],
    ]
    labels = [
        {"class_labels": torch.tensor([0, 1, 1, 2]), "boxes": torch.tensor(boxes, dtype=dtype)},
        {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.3017, 0.5009, 0.3979, 0.4021]], dtype=dtype)},
    ]
    images = [painted(corners(each["boxes"]) * 64, each["class_labels"], 64) for each in labels]
    return {"pixel_values": torch.stack(images).to(dtype), "labels": labels}


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), 1)


def step(model, given: dict, seed: int = 1):
    """The outputs of a training step, and the gradient of all weights."""
    torch.manual_seed(seed)  # denoising queries and dropout are drawn
    model.zero_grad()
    outputs = model(**given)
    outputs.loss.backward()
    return outputs, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
