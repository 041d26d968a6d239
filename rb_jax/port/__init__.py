"""Weights and models in and out of PyTorch."""
