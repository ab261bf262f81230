"""Score every dim of a model on mteb tasks: python eval/run_mteb.py bundled --tasks STSBenchmark --dims 384 128 32."""

from __future__ import annotations

import sys

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.evaluation.command import main

if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:])
