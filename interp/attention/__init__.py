"""What a model attends to: true attention weights, maps of them on the image, Grad-CAM where there is no attention.

The package can be called: `interp.attention(models, batch, interp.Attend(…))` is `interp.attention.attend.attend`.
"""

from interp.called import call_as

call_as(__name__, "attend.attend")
