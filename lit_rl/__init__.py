"""Reinforcement learning for language models in which everything is a Lightning part."""
