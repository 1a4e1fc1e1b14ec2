"""Texts before a model reads them: token bytes, windows, templates, chat, splits by hash."""
