"""The parts of pod_train.py: processes, mesh, data, state and checkpoints.

Model and text are the GPT example's. Its files import each other by name, so their
folder has to be on the path.
"""

import sys
from pathlib import Path

GPT_FOLDER = str(Path(__file__).parents[1] / "gpt")
if GPT_FOLDER not in sys.path:
    sys.path.append(GPT_FOLDER)
