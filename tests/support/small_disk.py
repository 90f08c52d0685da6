"""A limit on file sizes stands for a full disk."""

import os

# Python takes no notice when what it compiles is cut off there, and that file would stay for later tests.
WITHOUT_BYTECODE = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
