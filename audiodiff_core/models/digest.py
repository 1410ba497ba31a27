"""Digest of a network's configuration and weights."""

import hashlib
import json
from typing import Any


def network_digest(network: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a network's configuration and weights.

    The digest does not depend on the files that the network was loaded from.
    """
    sha256 = hashlib.sha256(
        json.dumps(
            {key: value for key, value in network.config.items() if not key.startswith("_")},
            sort_keys=True,
            default=str,
        ).encode()
    )
    for name, weights in sorted(network.state_dict().items()):
        sha256.update(f"{name} {tuple(weights.shape)}".encode())
        sha256.update(weights.detach().cpu().float().contiguous().numpy())
    return sha256.hexdigest()[:16]
