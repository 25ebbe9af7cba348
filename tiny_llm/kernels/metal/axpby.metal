// out = a x + b y, computed in float. One thread for each element.
// x, y, out (n,) of T; a, b float; n is an int.
// BODY
// TASK w2.2.1: one element for each thread
uint i = thread_position_in_grid.x;
if (i >= uint(n)) {
  return;
}
out[i] = T(a * float(x[i]) + b * float(y[i]));
// END TASK
