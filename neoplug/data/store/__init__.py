"""The token cache: stores of tokenised documents, each named by the hash of everything that its tokens depend on.

Imported by `data` alone. Does not belong here: tokenisation (`encode`), the rows of a step (`data.sampler`).
"""
