"""Makes the model that services/fraud ships. `make train-fraud` sets up and runs it."""

import services.fraud.model  # noqa: F401 - its import keeps ONNX Runtime from reporting home
