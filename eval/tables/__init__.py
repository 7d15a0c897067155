"""Tables of papers, trained again at three sizes: ``python -m eval.tables.NAME --scale laptop``; see docs/tables.md.

A table is a list of cells (`cells`), the numbers they give (`rows`), the paper's claims about them (`claims`), and how
to show them (`command`). One file per table, with its recipes in ``configs/tables``.
"""
