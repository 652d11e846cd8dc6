"""The backbones, their weights, and the networks built on them."""
