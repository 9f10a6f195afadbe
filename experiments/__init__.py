"""Programs and configurations; `python -m experiments` lists them."""

import sys

# A program imports JAX before it reads its arguments, which takes seconds.
if not {"--help", "-h"}.isdisjoint(sys.orig_argv):
    from experiments.help import answer

    answer(sys.orig_argv)
