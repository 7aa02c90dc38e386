"""What Reparameterize is made of: layers as affine maps, their sums, and norms beside layers."""
