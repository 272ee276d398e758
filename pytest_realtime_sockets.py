"""What pytest loads wherever the package is installed: the plugin, unless another package is found before ours.

This module has a name of its own: a run of pytest that uses nothing of ours must not fail because a project, or another
distribution, has a package `realtime`.
"""

from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_found = find_spec("realtime")
_is_ours = _found is not None and Path(_found.origin or "").resolve().parent == _HERE / "realtime"

pytest_plugins = ["realtime.testing.plugin"] if _is_ours else []
