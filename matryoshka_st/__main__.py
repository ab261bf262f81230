"""``python -m matryoshka_st`` is the command ``matryoshka-st``."""

from matryoshka_st.cli import main

main()
