"""The adapter for criteria of the DETR family with rfdetr itself: a small model with random weights, offline."""

import json
import types
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.torchvision_without_extension import make_importable
from detr_criteria import (
    GROUPS,
    assert_added,
    containment,
)
from frameworks import need
from icr_kernels.integrations.detr import enable_icr

# A multiple of what its patches and windows ask for; a patch of 16 is not DINOv2's, so no weights are asked for.
SIDE = 128
MODEL = types.MappingProxyType(
    {
        "pretrain_weights": None,
        "device": "cpu",
        "num_classes": 2,
        "num_queries": 10,
        "num_select": 10,
        "group_detr": GROUPS,
        "resolution": SIDE,
        "hidden_dim": 64,
        "sa_nheads": 4,
        "ca_nheads": 4,
        "out_feature_indexes": [1, 2, 3, 4],
    }
)
RF_NAMES = ("car", "plate")
RF_CAR, RF_PLATE = (0.5, 0.5, 0.22, 0.13), (0.45, 0.55, 0.2, 0.08)


@pytest.fixture(scope="module")
def rfdetr():
    """The package, with a backbone of 4 layers of 48 where its configuration file has 12 of 384."""
    need("rfdetr")
    make_importable()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HF_HUB_OFFLINE", "1")
        import rfdetr
        from rfdetr.models.backbone import dinov2

        stock, small = dinov2.get_config, {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4}
        patch.setattr(dinov2, "get_config", lambda *arguments: {**stock(*arguments), **small})
        patch.setitem(dinov2.size_to_width, "small", 48)
        yield rfdetr


def configurations(**options):
    from rfdetr.config import RFDETRNanoConfig, TrainConfig

    plain = {"batch_size": 2, "num_workers": 0, "multi_scale": False, "tensorboard": False, "accelerator": "cpu"}
    return RFDETRNanoConfig(**MODEL), TrainConfig(**plain, **options)


@pytest.fixture(scope="module")
def rf_step(rfdetr, tmp_path_factory):
    """The parameters of a model, its outputs for three images, their targets, and what makes a new criterion."""
    from rfdetr.models import build_criterion_from_config, build_model_from_config
    from rfdetr.utilities.tensors import NestedTensor

    torch.manual_seed(0)
    settings = configurations(dataset_dir=None, output_dir=str(tmp_path_factory.mktemp("rfdetr")))
    model = build_model_from_config(*settings).train()
    with torch.no_grad():  # heads of zeros leave every output at the first proposals
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * (parameter.dim() > 1))
    size, targets = torch.tensor([SIDE, SIDE]), []
    for number, count in enumerate((2, 0, 1)):
        boxes, labels = torch.tensor([RF_CAR, RF_PLATE])[:count], torch.arange(count)
        targets.append({"boxes": boxes, "labels": labels, "image_id": torch.tensor([number]), "size": size})
    samples = NestedTensor(torch.rand(3, 3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE, dtype=torch.bool))
    outputs = model(samples, targets)
    return list(model.parameters()), outputs, targets, lambda: build_criterion_from_config(*settings)[0].train()


def rf_losses(criterion, outputs, targets, parameters):
    """As the training step weighs them, with the gradient of the model."""
    losses = criterion(outputs, targets)
    total = sum(loss * criterion.weight_dict[key] for key, loss in losses.items() if key in criterion.weight_dict)
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    losses = {key: torch.as_tensor(loss).item() for key, loss in losses.items()}
    return losses, torch.cat([each.flatten() for each in gradients if each is not None])


@pytest.mark.parametrize("is_padded", [False, True], ids=["", "padded"])
def test_a_step_of_rfdetr(rf_step, is_padded):
    """At weight 0 that of the stock criterion; above, the penalty of each output's matched plates, by hand."""
    parameters, outputs, targets, make = rf_step
    if is_padded:
        from rfdetr.utilities.tensors import pad_targets_to_fixed_count

        targets = list(pad_targets_to_fixed_count(targets, 4))
    criterion = make()
    stock, gradient = rf_losses(criterion, outputs, targets, parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = enable_icr(criterion, {"plate": "car"}, RF_NAMES, weight=0.0)
    losses, our_gradient = rf_losses(criterion, outputs, targets, parameters)
    assert_added(losses, stock, {}, rel=1e-5)
    assert (our_gradient - gradient).norm() <= 1e-5 * gradient.norm()
    assert handle.statistics[:4] == (1, 3 * GROUPS, GROUPS, GROUPS)
    layers = {
        "": {key: value for key, value in outputs.items() if key != "aux_outputs"},
        "_enc": outputs["enc_outputs"],
    }
    layers |= {f"_{number}": each for number, each in enumerate(outputs["aux_outputs"])}
    amounts = {}
    for suffix, layer in layers.items():
        queries, rows = criterion.matcher(layer, targets, group_detr=GROUPS)[0]
        of_plates = [
            layer["pred_boxes"][0, query].tolist() for query, row in zip(queries, rows, strict=True) if row == 1
        ]
        assert len(of_plates) == GROUPS
        amounts[suffix] = 10.0 * sum(1 - containment(box, RF_CAR) for box in of_plates) / (3 * GROUPS)
    assert all(amount > 1e-2 for amount in amounts.values())
    assert {f"loss_giou{suffix}" for suffix in layers} == {key for key in stock if "giou" in key}
    for auxiliary in True, False:
        enable_icr(criterion, {"plate": "car"}, RF_NAMES, weight=10.0, auxiliary=auxiliary)
        losses, our_gradient = rf_losses(criterion, outputs, targets, parameters)
        assert_added(losses, stock, amounts if auxiliary else {"": amounts[""]}, rel=1e-4)
        assert (our_gradient - gradient).norm() > 1e-2 * gradient.norm()


def test_rfdetr_takes_no_path_around_the_penalty(rf_step):
    """On CUDA its losses may be compiled for all outputs at once, without loss_boxes: by the stock class alone."""
    criterion = rf_step[3]()
    criterion.enable_compiled_detection_losses()
    with FakeTensorMode():
        layer = {
            "pred_logits": torch.empty(2, 20, 3, device="cuda"),
            "pred_boxes": torch.empty(2, 20, 4, device="cuda"),
        }
        matched = types.SimpleNamespace(labels=torch.empty(8, device="cuda"))
    assert criterion._can_batch_detection_losses([layer, layer], [matched, matched])
    handle = enable_icr(criterion, {"plate": "car"}, RF_NAMES)
    assert not criterion._can_batch_detection_losses([layer, layer], [matched, matched])
    handle.disable()
    assert criterion._can_batch_detection_losses([layer, layer], [matched, matched])


@pytest.fixture
def lightning(rfdetr):
    for name in ("pytorch_lightning", "torchmetrics", "faster_coco_eval"):
        need(name)
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_float32_matmul_precision(precision)  # build_trainer leaves another


def write_data(root):
    """Four noisy images of a car and its plate in each split, as rfdetr finds them."""
    from PIL import Image

    for split in ("train", "valid", "test"):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(4):
            pixels = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
            for category, box in ((1, [8, 8, 48, 48]), (2, [20, 30, 12, 6])):
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
                annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": n + 1, "name": name, "supercategory": "things"} for n, name in enumerate(RF_NAMES)]
        described = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(described))


def test_a_training_run_of_rfdetr(rfdetr, lightning, tmp_path):
    """With the average of its weights, validation and checkpoints; and from the last of them a second epoch."""
    torch.manual_seed(0)
    write_data(tmp_path / "data")
    out = tmp_path / "out"

    def train(epochs, checkpoint):
        options = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(out), "eval_backend": "faster_coco_eval"}
        settings = configurations(epochs=epochs, compute_val_loss=True, use_ema=True, aug_config={}, **options)
        module, data = (make(*settings) for make in (rfdetr.RFDETRModelModule, rfdetr.RFDETRDataModule))
        data.setup("fit")
        handle = enable_icr(module.criterion, {"plate": "car"}, data.class_names)
        quiet = {"enable_model_summary": False, "enable_progress_bar": False}
        trainer = rfdetr.build_trainer(*reversed(settings), accelerator="cpu", **quiet)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, module, handle

    trainer, module, handle = train(1, None)
    # Four images are too few: rfdetr draws ten, in five steps. Validation has the loss as well, and is not counted.
    assert trainer.global_step == 5 and "val/loss_giou" in trainer.callback_metrics
    assert handle.statistics[:4] == (5, 5 * 4 * GROUPS, 5 * 2 * GROUPS, 5 * 2 * GROUPS)
    assert 0 < handle.statistics.mean_penalty <= 1
    (average,) = [each._average_model for each in trainer.callbacks if hasattr(each, "_average_model")]
    assert type(average.module.criterion) is type(module.criterion) and average.module.criterion is not module.criterion
    written = [path for path in out.iterdir() if path.suffix in (".ckpt", ".pth")]
    assert {"last.ckpt", "checkpoint_best_total.pth"} <= {path.name for path in written}
    for path in written:
        assert b"icr_kernels" not in path.read_bytes(), path.name
    assert not any("criterion" in key for key in torch.load(out / "last.ckpt", weights_only=True)["state_dict"])
    trainer, _, handle = train(2, out / "last.ckpt")
    assert trainer.global_step == 10 and trainer.current_epoch == 2 and handle.statistics.steps == 5
