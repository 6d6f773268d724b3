"""How far maps of what a model looks at can be trusted: insertion, deletion, pixel flipping, randomisation.

The package can be called: `interp.faithfulness(models, batch, …)` is `interp.faithfulness.faithfulness.faithfulness`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from interp.faithfulness.faithfulness import faithfulness

        return faithfulness(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
