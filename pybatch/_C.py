"""What a Python imports for which no _C was built: extension modules come before this file."""

import sysconfig
from pathlib import Path

_built = sorted(file.name for file in Path(__file__).parent.glob("_C.*.so"))
raise ImportError(
    f"pybatch has no _C{sysconfig.get_config_var('EXT_SUFFIX')}, which this Python needs: "
    + (f"it was built as {', '.join(_built)}; PYBATCH_PYTHONS names others" if _built else "it was not built here")
)
