"""Encoding of rows: chat templates, tokenisation, loss masks, cutting to length, and the teacher's own prompts.

Imported by `data` itself, and by `runs` for what preview and the preflight checks show. Does not belong here: reading
files (`ingest`), storing tokens (`store`), tensors (`data.batch`).
"""
