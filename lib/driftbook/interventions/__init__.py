"""What can be done to a model, a file each: its parameters, how it opens, what it can tell, how it is described.

What a kind opens is imported as it opens, so that parameters are read without torch.

A new kind is a file like these and a line here (``docs/add-intervention.md``). The order is that of messages.
"""

# isort: off
from driftbook.interventions.none import NoIntervention as NoIntervention
from driftbook.interventions.checkpoint import Checkpoint as Checkpoint
from driftbook.interventions.adapter import Adapter as Adapter
from driftbook.interventions.finetune import Finetune as Finetune
from driftbook.interventions.steer import Steer as Steer
from driftbook.interventions.ablate import Ablate as Ablate
from driftbook.interventions.quantize import Quantize as Quantize
from driftbook.interventions.prompt import SystemPrompt as SystemPrompt
from driftbook.interventions.texts import Texts as Texts
from driftbook.interventions.endpoint import Endpoint as Endpoint
