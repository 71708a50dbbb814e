"""What other tools wrote, as tables of texts, and findings in files for other tools.

A format is a file like these and a line here: a function from a file to its answers, registered under its name
(``docs/exchange.md``). The order is that of messages.
"""

# isort: off
from driftbook.exchange import inspect_log as inspect_log
from driftbook.exchange import lm_eval as lm_eval
from driftbook.exchange import alpaca_eval as alpaca_eval
from driftbook.exchange import openai_batch as openai_batch
from driftbook.exchange import chat as chat
from driftbook.exchange import columns as columns
