"""The web UI: `python -m webui`, or `make ui`. Served to this computer only, and without the internet."""

import os

# Gradio reads these when it is imported: no usage statistics, no look for a newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
