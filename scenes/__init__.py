"""Scenes made up and rendered in plain torch, with exact depth: nothing to download.

`rooms` and `streets` are made by rolling dice, each a function of (split, index) alone. The package
needs torch and knows nothing of what its pictures are used for.
"""
