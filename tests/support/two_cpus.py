"""A trainer of Ultralytics for which two processes of a CPU are two GPUs. The processes import it from here, and leave
a note of what they have trained with in the folder of their run."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import parallel
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer

from icr_kernels.integrations.ultralytics.in_place import InPlace


class OnCpu(parallel.DistributedDataParallel):
    def __init__(self, module: torch.nn.Module, device_ids: Any, **options: Any) -> None:
        super().__init__(module, **options)


def cpu(*_: Any, **__: Any) -> torch.device:
    return torch.device("cpu")


engine.select_device = cpu
engine.parse_device = lambda device: device  # in newer versions
parallel.DistributedDataParallel = OnCpu


class TwoCpus(DetectionTrainer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Newer versions count the devices here, older ones later, from its argument.
        self.world_size, self.ddp = 2, "LOCAL_RANK" not in os.environ

    def _setup_ddp(self, *_: Any) -> None:
        distributed.init_process_group("gloo")

    def final_eval(self) -> None:
        """It would ask for the devices once more."""

    def _do_train(self, *world_size: int) -> None:
        super()._do_train(*world_size)
        criterion = self.model.module.criterion
        terms, other = getattr(criterion, "changes", (None, None))
        stock = getattr(criterion, "stock", criterion)
        note = {
            "criterion": type(criterion).__name__,
            "is_accelerated": all(isinstance(each, InPlace) for each in (stock, stock.assigner)),
            "paired": terms.record.statistics().paired if terms else None,
            "box_loss": other.loss if other else None,
        }
        Path(self.save_dir, f"rank{os.environ['RANK']}.json").write_text(json.dumps(note))
