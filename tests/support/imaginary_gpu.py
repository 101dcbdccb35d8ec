"""Results of a GPU that is not there. All numbers are made up."""

from benchmarks import aligned

MACHINE = {"device": "Imaginary GPU 1", "commit": "abc", "date": "2000-01-01"}


def row(figure="device", name="cuda", quantity="forward + backward", pairs=1000, unit="us", **rest):
    shape = {"case": aligned.MAIN, "shape": f"{pairs:,}", "pairs": pairs, "dtype": "float32", "threads": 16}
    key = {"figure": figure, "implementation": name, "quantity": quantity, "unit": unit}
    return {"device": MACHINE["device"], **shape, "p20": 9, "p50": 10, "p80": 11, **key, **rest}
