"""The interpreter of machine code: what single instructions do, and lanes that part and meet."""

import ctypes
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from sass import cubin
from sass.launch import decoded, run
from sass.listing import UnknownInstruction, instruction
from sass.machine import Machine
from sass.memory import GLOBAL, Fault, Memory
from sass.structs import Structs


def ran(*lines: str, threads: int = 32, memory: Memory | None = None) -> Machine:
    """The machine after these instructions; the n-th one is at address 16 n."""
    program = [decoded(instruction(16 * place, line)) for place, line in enumerate([*lines, "EXIT"])]
    machine = Machine(program, memory or Memory(0, 1024), {0: bytes(0x400)}, 4096)
    machine.launch(1, threads)
    return machine


def bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


INF, NAN = float("inf"), float("nan")

# An instruction, what is in R1, R2, R3 (floats as such), and what R0 is then.
RESULTS = [
    ("IADD3 R0, R1, -R2, R3", (5, 7, 1), -1),
    ("IADD3 R0, R1, ~R2, RZ", (5, 7, 0), 5 - 8),
    ("VIADD R0, R1, -0x1", (5,), 4),
    ("IMAD R0, R1, R2, -R3", (6, 7, 2), 40),
    ("IMAD.MOV.U32 R0, RZ, RZ, R1", (9,), 9),
    ("IMAD.SHL.U32 R0, R1, 0x10, RZ", (9,), 144),
    ("IMAD.HI.U32 R0, R1, R2, RZ", (0x80000000, 6, 0), 3),
    ("IMAD.HI R0, R1, R2, RZ", (-1, 6, 0), -1),
    ("LEA R0, R1, R2, 0x3", (5, 2), 42),
    ("LEA.HI R0, R1, R2, RZ, 0x8", (0x12345678, 1), 0x13),
    ("LEA.HI R0, R1, R1, RZ, 0x1", (-7,), -6),
    ("LEA.HI.X.SX32 R0, R1, R2, 0x1, !PT", (-7, 3), 2),
    ("SHF.L.U32 R0, R1, 0x10, RZ", (0x12345678,), 0x56780000),
    ("SHF.R.S32.HI R0, RZ, 0x1f, R1", (-7,), -1),
    ("SHF.R.U32.HI R0, RZ, 0x10, R1", (-7,), 0xFFFF),
    ("SHF.L.U64.HI R0, R1, 0x4, R2", (0x80000000, 1), 0x18),
    ("SHF.R.U64 R0, R1, 0x5, R2", (0x40, 3), 0x18000002),
    ("SHF.R.S64 R0, R1, 0x5, R2", (0x40, -1), 0xF8000002),
    ("LOP3.LUT R0, R1, R2, R3, 0xc0, !PT", (12, 10, 5), 8),
    ("LOP3.LUT R0, R1, R2, R3, 0x96, !PT", (12, 10, 5), 12 ^ 10 ^ 5),
    ("LOP3.LUT R0, R1, 0xff, RZ, 0xfc, !PT", (0x100,), 0x1FF),
    ("PRMT R0, R1, 0x9910, RZ", (0xFF80,), -0x80),
    ("PRMT R0, R1, 0x7732, R2", (0x12345678, 0), 0x1234),
    ("PRMT R0, R1, 0x5410, R2", (0x1111, 0x2222), 0x22221111),
    ("IABS R0, R1", (-7,), 7),
    ("VIMNMX R0, R1, R2, PT", (-7, 3), -7),
    ("VIMNMX.U32 R0, R1, R2, PT", (-7, 3), 3),
    ("VIADDMNMX R0, R1, -R2, 0x4, !PT", (5, 7), 4),
    ("VIMNMX.RELU R0, R1, R2, PT", (-7, 3), 0),
    ("FLO.U32 R0, R1", (0x1000,), 12),
    ("FLO.U32.SH R0, R1", (0x1000,), 19),
    ("FLO.U32 R0, R1", (0,), -1),
    ("BREV R0, R1", (1,), 0x80000000),
    ("POPC R0, R1", (0xF1,), 5),
    ("SGXT R0, R1, 0x8", (0x80,), -0x80),
    ("SGXT.U32 R0, R1, 0x8", (0x180,), 0x80),
    ("BMSK R0, R1, R2", (4, 3), 0x70),
    ("FADD R0, R1, -|R2|", (1.0, -0.25), 0.75),
    ("FMUL R0, R1, 0.5", (3.0,), 1.5),
    ("FFMA R0, R1, R2, R3", (1 + 2**-23, 1 - 2**-23, -1.0), -(2**-46)),
    # The product is a little more than half a unit in the last place, and then a little less: it is rounded once.
    ("FFMA R0, R1, R2, R3", (2**-12 + 2**-24, 2**-12 + 2**-35, 1.0), 1 + 2**-23),
    ("FFMA R0, R1, R2, R3", (2**-12, 2**-12, 1.0), 1.0),
    ("FFMA R0, R1, R2, R3", (2**-12 + 2**-24, 2**-12 - 2**-36, -1.0), -(1 - 2**-24)),
    ("FFMA.RP R0, R1, R2, R3", (2**-60, 2**-60, 1.0), 1 + 2**-23),
    ("FFMA.RM R0, R1, R2, R3", (-(2**-60), 2**-60, 1.0), 1 - 2**-24),
    ("FFMA.RZ R0, R1, R2, R3", (2**-60, 2**-60, -1.0), -(1 - 2**-24)),
    ("FADD.SAT R0, R1, R2", (1.0, 1.0), 1.0),
    ("FADD.FTZ R0, R1, R2", (2**-140, 2**-141), 0.0),
    ("FMNMX R0, R1, R2, PT", (NAN, 2.0), 2.0),
    ("FMNMX.NAN R0, R1, R2, !PT", (NAN, 2.0), NAN),
    ("FMNMX R0, R1, R2, PT", (0.0, -0.0), -0.0),
    ("FMNMX R0, R1, -INF, !PT", (2.0,), 2.0),
    ("FSEL R0, R1, -R2, !PT", (1.0, 2.0), -2.0),
    ("SEL R0, R1, 0xffffffff, PT", (7,), 7),
    ("FSET.BF.GT.AND R0, R1, R2, PT", (2.0, 1.0), 1.0),
    ("FSET.BF.GT.AND R0, R1, R2, PT", (NAN, 1.0), 0.0),
    ("FSET.BF.GTU.AND R0, R1, R2, PT", (NAN, 1.0), 1.0),
    ("MUFU.RCP R0, R1", (3.0,), 1 / 3),
    ("MUFU.RCP R0, -R1", (0.0,), -INF),
    ("MUFU.EX2 R0, R1", (-1.0,), 0.5),
    ("HFMA2.MMA R0, -RZ, RZ, 1.875, 0", (), 1.0),
    ("HFMA2.MMA R0, -RZ, RZ, 0, 2.384185791015625e-07", (), 4),
    ("HADD2.F32 R0, -RZ, R1.H1_H1", (0x3C004000,), 1.0),
    ("HADD2.F32 R0, -RZ, R1.H0_H0", (0x3C004000,), 2.0),
    ("F2FP.F16.F32.PACK_AB R0, R1, R2", (1.0, 2.0), 0x3C004000),
    ("F2FP.BF16.F32.PACK_AB R0, RZ, R1", (1 + 2**-8 + 2**-9,), 0x3F81),
    ("I2FP.F32.S32 R0, R1", (-3,), -3.0),
    ("I2FP.F32.U32 R0, R1", (-1,), 2.0**32),
    ("I2F.U32.RP R0, R1", (0x1000001,), 0x1000002 * 1.0),
    ("F2I.TRUNC.NTZ R0, R1", (-2.75,), -2),
    ("F2I.FTZ.U32.TRUNC.NTZ R0, R1", (-2.75,), 0),
    ("F2I.S64.TRUNC R0, R1", (INF,), -1),  # the low word of the largest number
    ("FRND.FLOOR R0, R1", (-2.75,), -3.0),
    ("P2R R0, PR, R1, 0x1", (6,), 6),
]


@pytest.mark.parametrize(("line", "given", "result"), RESULTS)
def test_result(line, given, result):
    words = [bits(value) if isinstance(value, float) else value & 0xFFFFFFFF for value in given]
    found = ran(*(f"MOV R{place}, {word:#x}" for place, word in enumerate(words, 1)), line).registers[0, 0]
    if isinstance(result, float) and np.isnan(result):
        assert np.isnan(found.view(np.float32))
    else:
        assert found == (bits(result) if isinstance(result, float) else result & 0xFFFFFFFF), hex(found)


def test_words_side_by_side():
    """Carries, and comparisons of high words after the low ones."""
    machine = ran(
        "MOV R2, 0xffffffff",
        "MOV R3, 0x1",
        "IADD3 R4, P0, R2, 0x1, RZ",
        "IADD3.X R5, R3, RZ, RZ, P0, !PT",  # (1, 0xffffffff) + 1 is (2, 0)
        "ISETP.GT.U32.AND P1, PT, R4, R2, PT",
        "ISETP.GT.AND.EX P1, PT, R5, R3, PT, P1",
        "ISETP.GE.U32.AND P2, PT, R4, R2, PT",
        "ISETP.GE.AND.EX P2, PT, R5, R5, PT, P2",
        "ISETP.NE.U32.AND P3, PT, R4, RZ, PT",
        "ISETP.NE.AND.EX P3, PT, R5, RZ, PT, P3",
        "IMAD.WIDE.U32 R6, R2, 0x3, R2",  # three times 0xffffffff, and (1, 0xffffffff)
        "IMAD.WIDE.U32 R16, P6, R2, R2, R2",  # 0xffffffff squared, and the same: a carry is all that is left
        "IMAD.WIDE R18, R2, R3, RZ",
        "LEA R8, P4, R2, R2, 0x2",
        "LEA.HI.X R9, R2, R3, R3, 0x2, P4",  # (1, 0xffffffff) times 4, and (1, 0xffffffff)
        "IADD3 R10, P5, R2, -R2, RZ",  # nothing is borrowed
        "I2F.F64 R12, R3",
        "DADD R12, R12, -0.75",
        "F2F.F32.F64 R14, R12",
    )
    words = machine.registers[:, 0].copy()
    assert [*words[4:6]] == [0, 2]
    assert [*machine.predicates[1:4, 0]] == [True, False, True]
    pairs = words[0:20].view(np.uint64)
    assert [pairs[3], pairs[4], pairs[8], pairs[9]] == [4 * 0xFFFFFFFF + (1 << 32), 5 * 0x1FFFFFFFF, 0, (1 << 64) - 1]
    assert machine.predicates[5:7, 0].all() and words[14] == bits(0.25)


def test_lanes_and_their_neighbours():
    lanes = np.arange(64)
    machine = ran(
        "S2R R1, SR_TID.X",
        "SHFL.DOWN P0, R2, R1, 0x10, 0x1f",
        "SHFL.IDX PT, R3, R1, 0x5, 0x1f",
        "SHFL.BFLY PT, R4, R1, 0x1, 0x1f",
        "SHFL.UP P1, R5, R1, 0x1, 0x0",
        "LOP3.LUT P2, RZ, R1, 0x1, RZ, 0xc0, !PT",
        "VOTE.ANY R6, P3, P2",
        "VOTE.ALL P4, P2",
        "REDUX.MAX.S32 UR4, R1",
        "IMAD.U32 R7, RZ, RZ, UR4",
        "PLOP3.LUT P5, PT, P2, P3, PT, 0x80, 0x0",
        "R2UR UR5, R1",
        "UIADD3 UR5, UR5, 0x1, URZ",
        "UISETP.GT.AND UP0, UPT, UR5, 0x1, UPT",
        "USEL UR6, UR5, 0x7, UP0",
        "MOV R8, UR6",
        threads=64,
    )
    warp = lanes // 32 * 32
    assert (machine.registers[2] == np.where(lanes % 32 < 16, lanes + 16, lanes)).all()
    assert (machine.predicates[0] == (lanes % 32 < 16)).all()
    assert (machine.registers[3] == warp + 5).all() and (machine.registers[4] == lanes ^ 1).all()
    assert (machine.registers[5] == np.where(lanes % 32 > 0, lanes - 1, lanes)).all()
    assert (
        (machine.registers[6] == 0xAAAAAAAA).all() and machine.predicates[3].all() and not machine.predicates[4].any()
    )
    assert (machine.registers[7] == warp + 31).all()
    assert (machine.predicates[5] == lanes % 2).all()
    assert (machine.registers[8] == np.where(lanes < 32, 7, 33)).all()


PARTED = (
    "S2R R1, SR_TID.X",
    "LOP3.LUT P0, RZ, R1, 0x1, RZ, 0xc0, !PT",
    "BSSY B0, 0x80",
    "@P0 BRA 0x60",
    "MOV R0, 0x1",
    "BRA 0x70",
    "MOV R0, 0x2",
    "BSYNC B0",
    "VIADD R0, R0, 0x1",
)


def test_lanes_that_part_meet_at_the_barrier():
    machine = ran(*PARTED, threads=64)
    assert (machine.registers[0] == np.where(np.arange(64) % 2, 3, 2)).all()
    assert [*machine.executed] == [2, 2, 2, 2, 2, 2, 2, 4, 2, 2], "each part counts until they meet"


def test_lanes_that_do_not_meet_count_on():
    apart = [line if line[:4] not in ("BSSY", "BSYN") else "NOP" for line in PARTED]
    assert ran(*apart, threads=64).executed[8] == 4
    whole = [line.replace("R1, 0x1", "R1, 0x20") for line in PARTED]  # warp by warp: nothing parts
    assert [*ran(*whole, threads=64).executed] == [2, 2, 2, 2, 1, 1, 1, 2, 2, 2]


def test_parts_meet_apart_at_barriers_of_the_same_name():
    """Lanes go to four places; the even and the odd ones each meet at a B1 of their own before all meet at B0."""
    machine = ran(
        "S2R R1, SR_TID.X",
        "LOP3.LUT P0, RZ, R1, 0x1, RZ, 0xc0, !PT",
        "LOP3.LUT P1, RZ, R1, 0x2, RZ, 0xc0, !PT",
        "BSSY B0, 0x110",
        "@P0 BRA 0xb0",
        "BSSY B1, 0x90",
        "@P1 BRA 0x80",
        "VIADD R0, R0, 0x1",
        "BSYNC B1",
        "VIADD R0, R0, 0x10",
        "BRA 0x100",
        "BSSY B1, 0xf0",
        "@P1 BRA 0xe0",
        "VIADD R0, R0, 0x2",
        "BSYNC B1",
        "VIADD R0, R0, 0x20",
        "BSYNC B0",
        "VIADD R0, R0, 0x40",
        threads=64,
    )
    even, first = np.arange(64) % 2 == 0, np.arange(64) // 2 % 2 == 0
    assert (machine.registers[0] == np.where(even, 0x50 + first, 0x60 + 2 * first)).all()
    assert [machine.executed[place] for place in (9, 15, 16, 17)] == [2, 2, 4, 2]


def test_lanes_that_break_out_are_not_waited_for():
    broken = [*PARTED[:4], "BREAK B0", "BRA 0x80", *PARTED[6:]]
    machine = ran(*broken, threads=64)
    assert (machine.registers[0] == np.where(np.arange(64) % 2, 3, 1)).all()
    assert machine.executed[7] == 2 and machine.executed[8] == 4


def test_lanes_that_leave_are_not_waited_for():
    leaving = [*PARTED[:4], "EXIT", *PARTED[5:]]
    machine = ran(*leaving, "BAR.SYNC.DEFER_BLOCKING 0x0", threads=64)
    assert (machine.registers[0] == np.where(np.arange(64) % 2, 3, 0)).all()


def test_loops_of_different_lengths_and_shared_memory():
    """Lane n adds up n times what its neighbour has left."""
    machine = ran(
        "S2R R1, SR_TID.X",
        "LOP3.LUT R9, R1, 0x1f, RZ, 0x3c, !PT",
        "IMAD.SHL.U32 R2, R1, 0x4, RZ",
        "STS [R2+0x400], R9",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "LDS R3, [R2+0x400]",
        "BSSY B1, 0xb0",
        "VIADD R4, R4, 0x1",
        "IADD3 R0, R0, R3, RZ",
        "ISETP.LE.U32.AND P0, PT, R4, R1, PT",
        "@P0 BRA 0x70",
        "BSYNC B1",
    )
    lanes = np.arange(32)
    assert (machine.registers[0] == (lanes + 1) * (lanes ^ 31)).all()
    assert machine.executed[8] == 32 and machine.executed[11] == 32 and machine.executed[12] == 1


def test_rows_in_memory():
    memory = Memory(1 << 20, 4096)
    values = np.arange(128, dtype=np.float32)
    source, target = memory.put(values), memory.reserve(512)
    move = (
        "S2R R1, SR_TID.X",
        f"MOV R2, {source:#x}",
        "MOV R3, RZ",
        "IMAD.WIDE.U32 R2, R1, 0x10, R2",
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "LDG.E.U16 R8, desc[UR4][R2.64+0x6]",
        f"STG.E.128 desc[UR4][R2.64+{target - source:#x}], R4",
    )
    machine = ran(*move, memory=memory)
    assert (memory.view(target, 512).view(np.float32) == values).all()
    assert (machine.registers[8] == values.view(np.uint32)[1::4] >> 16).all()
    with pytest.raises(Fault, match="belong to nobody"):
        ran(*(line.replace("R2.64]", "R2.64+0x100]") for line in move), memory=memory)
    with pytest.raises(Fault, match="not their multiple"):
        ran(*(line.replace("R2.64]", "R2.64+0x4]") for line in move), memory=memory)


@pytest.mark.parametrize("line", ["FADD.NEW R0, R1, R2", "QADD R0, R1, R2", "S2R R0, SR_CLOCKLO", "FADD R0, X1, R2"])
def test_what_is_not_understood_is_said(line):
    with pytest.raises(UnknownInstruction) as error:
        ran(line)
    assert line in str(error.value) or "X1" in str(error.value)


def test_waiting_for_ever_is_a_fault():
    with pytest.raises(Fault, match="WARPSYNC"):
        ran(
            "S2R R1, SR_TID.X",
            "ISETP.NE.AND P0, PT, R1, RZ, PT",
            "@P0 WARPSYNC.ALL",
            "@!P0 BAR.SYNC.DEFER_BLOCKING 0x0",
        )


SAMPLE = "tests/support/cpp/ordinary_arithmetic.cu"
NUMBERS = np.dtype(
    [
        *((name, "f4") for name in "abc"),
        *((name, "i4") for name in "ij"),
        *((name, "u4") for name in "uv"),
        ("l", "i8"),
    ],
    align=True,
)
WHAT = np.dtype([("floats", "f4", 18), ("ints", "i4", 18), ("longs", "i8", 6), ("doubles", "f8", 6)], align=True)


def numbers(count: int) -> np.ndarray:
    """Small and large ones, and among the floats some that are special."""
    random = np.random.default_rng(0)
    found = np.zeros(count, NUMBERS)
    for name in "abc":
        values = random.normal(size=count) * 10 ** random.uniform(-3, 4, count)
        found[name] = np.where(random.random(count) < 0.1, random.choice([0, -0.0, 1, 0.5, 2], count), values)
    for name in "ij":
        found[name] = random.integers(-(2**31), 2**31, count) >> random.integers(0, 31, count)
    for name in "uv":
        found[name] = random.integers(0, 2**32, count) >> random.integers(0, 32, count)
    found["l"] = random.integers(-(2**62), 2**62, count) >> random.integers(0, 62, count)
    return found


def test_ordinary_arithmetic_is_that_of_the_host(tmp_path):
    """Of one source the interpreter runs what nvcc makes of it, and the host what its compiler does."""
    if reason := cubin.obstacle() or (None if shutil.which("g++") else "no g++"):
        pytest.skip(reason)
    library, given = tmp_path / "host.so", numbers(1024)
    source = Path(cubin.ROOT, SAMPLE)
    cubin.output_of("g++", "-x", "c++", "-O2", "-ffp-contract=off", "-shared", "-fPIC", source, "-o", library)
    truth = np.zeros(len(given), WHAT)
    ctypes.CDLL(str(library)).compute_all(
        given.ctypes.data_as(ctypes.c_void_p), truth.ctypes.data_as(ctypes.c_void_p), len(given)
    )
    code = cubin.compiled(SAMPLE, tmp_path, ["-std=c++17", "-O3", "-fmad=false"])
    kernel = cubin.read(code, ["compute_all"])["compute_all"]
    memory = Memory(GLOBAL, 1 << 20)
    results = memory.reserve(truth.nbytes)
    run(Structs(), kernel, memory, (memory.put(given.view(np.uint8)), results, len(given)), blocks=4, threads=256)
    found = memory.view(results, truth.nbytes).view(WHAT)
    for name in ("floats", "ints", "longs"):
        for place, (column, wanted) in enumerate(zip(found[name].T, truth[name].T, strict=True)):
            is_same = (column == wanted) | ((column != column) & (wanted != wanted))
            assert is_same.all(), (
                f"{name}[{place}] of {given[~is_same][0]}: {column[~is_same][0]}, not {wanted[~is_same][0]}"
            )
    np.testing.assert_allclose(found["doubles"], truth["doubles"], rtol=2**-51)
