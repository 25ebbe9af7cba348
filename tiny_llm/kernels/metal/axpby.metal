// out = a x + b y, computed in float. One thread for each element.
// x, y, out (n,) of T; a, b float; n is an int.
// BODY
// TASK w2.2.1: one element for each thread
// HINT 1: which thread am I, of all that run? And what if I am one too many?
// HINT 2: thread_position_in_grid.x is a thread's number. Groups are whole on some back ends, so that the last one may
//   reach beyond n: such a thread has nothing to do and returns. Convert to float before you multiply, to T at the end.
// HINT 3: i = thread_position_in_grid.x; if i >= n: return; out[i] = T(a * float(x[i]) + b * float(y[i]))
uint i = thread_position_in_grid.x;
if (i >= uint(n)) {
  return;
}
out[i] = T(a * float(x[i]) + b * float(y[i]));
// END TASK
