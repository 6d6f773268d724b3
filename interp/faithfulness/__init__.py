"""How far maps of what a model looks at can be trusted: insertion, deletion, pixel flipping, randomisation.

The package can be called: `interp.faithfulness(models, batch, …)` is `interp.faithfulness.faithfulness.faithfulness`.
"""

from interp.called import call_as

call_as(__name__, "faithfulness.faithfulness")
