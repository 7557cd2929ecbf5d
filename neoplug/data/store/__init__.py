"""The token cache: tokenised documents in flat files under a content hash, mapped into memory when read.

Imported by `data` alone. Does not belong here: tokenisation (`encode`), the rows of a step (`data.sampler`).
"""
