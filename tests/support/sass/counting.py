"""Counts of issued instructions, and of those that take more than one slot."""

from typing import NamedTuple

import numpy as np

from .machine import Machine

# Of the 128 lanes for which a multiprocessor of compute capability 9.0 issues in a clock, so many are executed: 64 of
# what compares, selects, counts and shifts, and of doubles; 16 of reciprocals, exponentials and conversions. From the
# table "Throughput of Native Arithmetic Instructions" of the CUDA C++ Programming Guide, but for selects, moves and
# predicates, which it does not have: Nsight Compute's guide names the same unit for them (ALU). The uniform datapath,
# memory and branches have no rate here.
HALF = "FMNMX FSEL FSETP FSET SEL ISETP ISET IADD3 IADD VIADD IMAD LEA SHF LOP3 PRMT MOV IABS VIMNMX VIMNMX3 VIADDMNMX"
HALF += " IMNMX PLOP3 P2R R2P SGXT BMSK F2FP I2FP VOTE DADD DMUL DFMA DSETP FCHK"
EIGHTH = "MUFU F2F F2I I2F FRND POPC FLO BREV REDUX"
EIGHTH_RATE, HALF_RATE = frozenset(EIGHTH.split()), frozenset(HALF.split())


class Count(NamedTuple):
    """What warps issued: all of it, and of that what takes two slots of a multiprocessor, or eight."""

    instructions: float
    half_rate: float
    eighth_rate: float

    def __sub__(self, other: "Count") -> "Count":
        return Count(*(a - b for a, b in zip(self, other, strict=True)))

    def per(self, number: float) -> "Count":
        return Count(*(value / number for value in self))


def count(machine: Machine) -> Count:
    names = np.array([step.instruction.name for step in machine.program])
    by_rate = (np.isin(names, list(rate)) for rate in (HALF_RATE, EIGHTH_RATE))
    return Count(*(float(machine.executed[which].sum()) for which in (slice(None), *by_rate)))
