"""Reinforcement learning for language models on PyTorch Lightning."""
