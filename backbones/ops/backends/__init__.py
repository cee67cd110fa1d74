"""The modules that compute the operators; `backbones.ops.selection` chooses between them."""
