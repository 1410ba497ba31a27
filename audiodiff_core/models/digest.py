"""Digest of a network's configuration and weights."""

import hashlib
import json
from typing import Any


def network_digest(network: Any) -> str:
    """Names a network: 16 hex digits of the SHA-256 of its configuration and weights, whichever files they came from."""
    total = hashlib.sha256(
        json.dumps(
            {key: value for key, value in network.config.items() if not key.startswith("_")},
            sort_keys=True,
            default=str,
        ).encode()
    )
    for name, weights in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(weights.shape)}".encode())
        total.update(weights.detach().cpu().float().contiguous().numpy())
    return total.hexdigest()[:16]
