"""Next-token entropy of texts by a proxy model, kept on disk."""
