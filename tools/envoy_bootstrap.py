#!/usr/bin/env python3
"""Prints deploy/envoy/bootstrap.json: how Envoy starts in a container.

    tools/envoy_bootstrap.py > deploy/envoy/bootstrap.json

A test holds the file equal to what this prints.
"""

import json
from pathlib import Path

from services.gateway.domain.bootstrap import Bootstrap, bootstrap
from services.gateway.domain.edge import Address

# Where compose and Kubernetes mount the gateway's certificate.
SECRETS = Path("/etc/tallystick/tls")

IN_A_CONTAINER = Bootstrap(
    node_id="envoy",
    control_plane=Address("gateway", 18000),
    certificate_file=SECRETS / "gateway.pem",
    key_file=SECRETS / "gateway.key",
    ca_file=SECRETS / "internal-ca.pem",
    admin=Address("127.0.0.1", 9901),
    observe=Address("0.0.0.0", 9902),  # noqa: S104 - of a container, which has no other
)

if __name__ == "__main__":
    print(json.dumps(bootstrap(IN_A_CONTAINER), indent=2))
