"""The modules of examples/gpt, which are found by name, for the files here."""

import sys
from pathlib import Path

# Last: both folders have a `report`, and here ours is meant.
sys.path.append(str(Path(__file__).parents[1] / "examples" / "gpt"))

import climb as climb
import corpus as corpus
import loop as loop
import model as model
import recipes as recipes
