"""Counts of issued instructions, and of those that take more than one slot."""

from typing import NamedTuple

import numpy as np

from .listing import Instruction

# Of the 128 lanes for which a multiprocessor of compute capability 9.0 issues in a clock, so many are executed: 64 of
# what compares, counts and shifts, and of doubles; 16 of reciprocals, exponentials and conversions. From the table
# "Throughput of Native Arithmetic Instructions" of the CUDA C++ Best Practices Guide (before 13.0: of the Programming
# Guide), but for selects, moves and predicates, which it does not have: they are taken to be executed where comparisons
# are. The uniform datapath, memory and branches have no rate here.
HALF = "FMNMX FSEL FSETP FSET SEL ISETP ISET IADD3 IADD VIADD IMAD LEA SHF LOP3 PRMT MOV IABS VIMNMX VIMNMX3 VIADDMNMX"
HALF += " IMNMX PLOP3 P2R R2P SGXT BMSK F2FP I2FP VOTE DADD DMUL DFMA DSETP FCHK"
EIGHTH = "MUFU F2F F2I I2F FRND POPC FLO BREV REDUX"
EIGHTH_RATE, HALF_RATE = frozenset(EIGHTH.split()), frozenset(HALF.split())


class Count(NamedTuple):
    """What warps issued: all of it, and of that what takes two slots of a multiprocessor, or eight."""

    instructions: float
    half_rate: float
    eighth_rate: float


def counted(code: list[Instruction], times: np.ndarray) -> Count:
    """Of code whose instructions were executed so many times."""
    names = np.array([each.name for each in code])
    by_rate = (times[np.isin(names, list(rate))].sum() for rate in (HALF_RATE, EIGHTH_RATE))
    return Count(float(times.sum()), *map(float, by_rate))
