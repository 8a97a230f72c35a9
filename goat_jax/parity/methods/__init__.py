"""Cases of other methods: each is replayed with the layer, gradients and steps of training."""
