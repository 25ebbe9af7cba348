// out = silu(gate) up, where row t of gate_up holds gate and up side by side. One thread for each element of out.
// gate_up (T, 2 I), out (T, I) of type T; width is I, n is T I.
// BODY
// YOUR CODE (w2.3.1): one element of the result for each thread
#error "NotDone: w2.3.1"
