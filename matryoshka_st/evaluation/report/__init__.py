"""The report of evaluations: figures, tables and one self-contained page, all made from a list of runs."""
