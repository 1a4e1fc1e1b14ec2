"""Configs that come with the package: ``lit-rl fit --config NAME``."""
