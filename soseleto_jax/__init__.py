"""SOSELETO in JAX: learns a weight for every source example together with the network."""
