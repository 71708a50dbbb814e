"""What opens models, changes them, and reads from them."""

import logging
import os

from driftbook.workers import PASSIVE

os.environ.setdefault(*PASSIVE)

# Said at every import of torchao, about builds for hardware that is not here; nothing that a user could act on.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
