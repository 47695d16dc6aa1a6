"""The model: a frozen ViT, side branches of MultiConv adapters, heads, descriptors; and their weights."""
