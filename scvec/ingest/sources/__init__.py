"""Services that are asked over the network, and how they are asked."""
