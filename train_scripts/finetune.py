"""Fine-tune embeddings that can be cut to any length.

accelerate launch train_scripts/finetune.py --config RECIPE.yaml [--flag value ...]
"""

from __future__ import annotations

import sys

from matryoshka_st.cli import exit_with_one_sentence
from matryoshka_st.training.run import main

if __name__ == "__main__":
    with exit_with_one_sentence():
        main(sys.argv[1:], prog="finetune.py")
