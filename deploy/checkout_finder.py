"""Find the checkout that a virtual environment has installed, also from the folder that holds it.

Copied into the environment by make-venv.sh. Beside a script, Python takes any folder named grange for a
package without __init__.py, and so the checkout itself (its package lies one folder further down); a path
beats the finder of the editable installation. So where the path has no more than such a folder, that finder
is asked first.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


class CheckoutFinder:
    """Answers for "grange" alone."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where grange is, or None to let the others look."""
        if name != "grange":
            return None
        on_path = PathFinder.find_spec(name, path)
        if on_path is not None and on_path.origin is not None:
            return on_path
        for finder in sys.meta_path:
            if getattr(finder, "__module__", "").startswith("__editable___grange"):
                return finder.find_spec(name, path)
        return None


sys.meta_path.insert(0, CheckoutFinder)  # type: ignore[arg-type]
