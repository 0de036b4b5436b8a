"""Makes the model that services/fraud ships. Needs `make setup-training`."""

import services.fraud.model  # noqa: F401 - its import keeps ONNX Runtime from reporting home
