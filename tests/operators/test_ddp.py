"""DistributedDataParallel: two processes, each with its share of the pairs, train as one with all of them."""

import os
import subprocess
import sys

import torch
from torch import nn

import icr_kernels as icr
from icr_kernels.integrations.distributed import mean_over_ranks
from inputs import pairs

N, SHARE = 60, 37  # the shares differ in size


class Head(nn.Module):
    """Moves and scales all boxes alike: four parameters that every pair has a gradient for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((2,), 0.3))

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        return boxes * self.scale.repeat(2) + self.shift.repeat(2)


def step(head: nn.Module, rows: slice, normalizer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the gradient of the parameters."""
    pred, target, anchor_objects = (boxes[rows] for boxes in pairs(N))
    loss = icr.icr_loss(head(pred), target, anchor_objects, normalizer=normalizer)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad for parameter in head.parameters()])


def process() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    head = nn.parallel.DistributedDataParallel(Head())
    rows = (slice(0, SHARE), slice(SHARE, N))[rank]
    # DDP averages gradients over the processes: each divides by the average number of pairs.
    normalizer = mean_over_ranks(torch.tensor(rows.stop - rows.start))
    assert normalizer == N / 2
    loss, found = step(head, rows, normalizer)
    loss_alone, alone = step(Head(), slice(0, N), torch.tensor(float(N)))
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-7)
    torch.distributed.all_reduce(loss)
    torch.testing.assert_close(loss / torch.distributed.get_world_size(), loss_alone, rtol=1e-5, atol=1e-7)
    # Of losses that are wise the mean is that of one process with all pairs too.
    wise = icr.BoxLoss("wiou", wise="v3")
    module = icr.BoxIoULoss(wise, average_over_ranks=True)
    module(*(boxes[rows] for boxes in pairs(N)[:2]))
    of_all = icr.BoxIoULoss(wise)
    of_all(*pairs(N)[:2])
    assert of_all.wise_mean < 1
    torch.testing.assert_close(module.wise_mean, of_all.wise_mean, rtol=1e-6, atol=0)
    sys.stdout.write(f"rank {rank} agrees\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may end the process with an error while Python takes it down


def test_two_processes_have_the_loss_and_the_gradient_of_one():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "ICR_KERNELS_TEST_REFERENCE_ONLY": "1"}  # no emulation to build
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # what pytest has put there is where `inputs` is
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    assert {"rank 0 agrees", "rank 1 agrees"} == set(result.stdout.splitlines())


def test_without_processes_the_count_is_its_own_mean():
    assert mean_over_ranks(torch.tensor(7)) == 7 and mean_over_ranks(3).dtype == torch.float32
    assert mean_over_ranks(torch.tensor(0.25)) == 1, "never less than one pair"
    count = torch.tensor(5.0, requires_grad=True)
    assert not mean_over_ranks(count).requires_grad


if __name__ == "__main__":
    process()
