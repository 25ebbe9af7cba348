"""C++ kernels for a CPU: products with packed and dense weights, embedding, norm, layers, attention, whole steps."""
