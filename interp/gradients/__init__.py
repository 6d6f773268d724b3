"""Input gradients, one by one from a source and folded in constant memory."""
