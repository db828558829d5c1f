"""Small networks in the forms that published ones have, worked out by hand."""

from tests.support.networks import (
    attention,
    convolutional,
    fused,
    recurrent,
    structured,
)
from tests.support.networks.network import Hidden, Network

__all__ = ["NETWORKS", "Hidden", "Network"]

NETWORKS = {
    **recurrent.NETWORKS,
    **attention.NETWORKS,
    **convolutional.NETWORKS,
    **structured.NETWORKS,
    **fused.NETWORKS,
}
