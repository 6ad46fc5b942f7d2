"""Losses, learning rates, optimizers and the training loop that the commands share."""
