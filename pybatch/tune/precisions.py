"""Names of the precisions that a model may run in, spelled alike by plans, sweeps and tables."""

from __future__ import annotations

from pybatch.model.weights import QUANTIZATIONS

DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = (*DTYPES, *QUANTIZATIONS)
ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def precision_named(name: str) -> str:
    """One of PRECISIONS, of which the short names of types are known too. Raises ValueError."""
    found = ALIASES.get(name, name)
    if found not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")
    return found


def arguments(precision: str) -> dict[str, str]:
    """Those of LLM that load a model so; "auto": as it is."""
    return {"dtype": precision} if precision in ("auto", *DTYPES) else {"quantization": precision}
