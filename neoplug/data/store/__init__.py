"""The token cache: tokenised documents in flat files under a content hash, mapped into memory when read.

Imported by `data` alone. Does not belong here: what the tokens of a row are (`encode`), which rows a step holds
(`data.sampler`).
"""
