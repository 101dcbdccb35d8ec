"""What half precision costs the gradients of a criterion, beside the stock one."""

import torch

from benchmarks import rounding


def test_gradients_of_boxes_are_nearer_to_those_in_float64(capsys, monkeypatch):
    monkeypatch.setattr(rounding, "SIZE", 320)
    boxes, classes, of_boxes, of_classes = rounding.errors("yolo26n", (0.05, 0.45), torch.bfloat16)
    # Their own rounding, of at most half a unit in the last place.
    assert max(boxes, classes) <= 2**-8
    assert of_boxes > 20 * boxes and of_classes > classes
    monkeypatch.setattr(rounding, "errors", lambda *_: [1e-3, 2e-3, 5e-2, 3e-3])
    rounding.main()
    printed = capsys.readouterr().out
    assert printed.count("50") >= len(rounding.MODELS) * len(rounding.SIDES) * 2 and "1.5" in printed
