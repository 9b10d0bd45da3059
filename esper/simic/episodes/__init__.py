"""Recorded episodes as data: a directory of plain arrays with a manifest, written whole and never again.

A row is "state before, action, what followed". ``columns`` says what there is, ``shards`` how it lies in files,
``writer`` how it grows, ``dataset`` how it is read, and ``storage`` how TorchRL samples from it.
"""
