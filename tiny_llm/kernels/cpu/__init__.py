"""Products with packed and dense weights, a layer's two functions and attention of few queries, native on a CPU."""
