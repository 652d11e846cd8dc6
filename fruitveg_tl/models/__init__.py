"""Networks in: the backbones, the weights they start from, and what is built on them."""
