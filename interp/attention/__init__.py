"""What a model attends to: true attention weights, maps of them on the image, Grad-CAM where there is no attention."""
