"""The model: trained elsewhere (training/), served here."""

import os

# ONNX Runtime reports its use to its maker, and leaves a file in the temporary directory for it, unless this is set
# before it is imported: <https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md>.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
