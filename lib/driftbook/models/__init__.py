"""What opens models, changes them, and reads from them."""

import gc
import logging
import os

from driftbook.workers import PASSIVE

os.environ.setdefault(*PASSIVE)

# torch and transformers make a million objects that stay. Looking for garbage after every 700 new ones, as Python
# begins, takes a seventh of the time of importing them and of loading a model.
_collect_after = gc.get_threshold()[0]
if 0 < _collect_after < 5_000:  # 0: never, which is somebody's choice
    gc.set_threshold(5_000)

# Said at every import of torchao, about builds for hardware that is not here; nothing that a user could act on.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
