"""What a model attends to: true attention weights, maps of them on the image, Grad-CAM where there is no attention.

The package can be called: `interp.attention(models, batch, interp.Attend(…))` is `interp.attention.attend.attend`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from interp.attention.attend import attend

        return attend(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
