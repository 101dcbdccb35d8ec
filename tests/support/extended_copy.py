"""A copy of the package and of the studies, without kernels, that has one loss and one penalty more: those are there
already, under other names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import icr_kernels
import studies

LOSS, PENALTY = "giou again", "pull again"


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: what this test edits has changed: {old!r}"
    path.write_text(text.replace(old, new))


def copied(folder: Path) -> Path:
    """Puts the copy into the folder."""
    for package in (icr_kernels, studies):
        source = Path(package.__file__).parent
        left_out = shutil.ignore_patterns("*.so", "__pycache__", "triton_kernels")
        shutil.copytree(source, folder / source.name, ignore=left_out)
    variants, formulas = folder / "icr_kernels/variants.py", folder / "icr_kernels/formulas.py"
    edited(variants, "\n)\nLOSSES =", f'\n    Variant("{LOSS}", "1", "[0, 2)", "test"),\n)\nLOSSES =')
    edited(variants, "\n)\n\n# Without", f'\n    Variant("{PENALTY}", "1", "[0, 1)", "test"),\n)\n\n# Without')
    edited(formulas, "kld, reverse_kld)", "kld, reverse_kld, giou)")
    edited(
        formulas,
        "pull_penalty, containment_pull_penalty)",
        "pull_penalty, containment_pull_penalty, pull_penalty)",
    )
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What Python says that runs in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
