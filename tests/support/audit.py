"""What the compiled extensions ask of other libraries, by the tools that judge it."""

import json
import subprocess
import sys
from pathlib import Path


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def audited(library: str) -> list[dict]:
    """What torch-abi-audit finds of each extension beside the library."""
    found = json.loads(output_of(str(Path(sys.executable).parent / "torch-abi-audit"), "--json", library))
    return [extension["torch"] for extension in found["extensions"]]
