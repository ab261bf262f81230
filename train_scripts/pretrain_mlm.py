"""Train a BERT with a masked language model whose prefixes predict too.

accelerate launch train_scripts/pretrain_mlm.py --config RECIPE.yaml [--flag value ...]
"""

from __future__ import annotations

import sys

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.mlm.run import main

if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:], prog="pretrain_mlm.py")
