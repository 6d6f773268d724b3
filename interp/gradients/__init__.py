"""Input gradients, block by block from a source and folded in constant memory; attributions."""
