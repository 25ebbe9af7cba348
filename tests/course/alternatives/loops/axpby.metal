// Everything from the place within the group, and the bound in an if.
// BODY
const uint begin = threadgroup_position_in_grid.x * 256;
const uint place = begin + thread_position_in_threadgroup.x;
if (place < uint(n)) {
  float total = float(x[place]) * a;
  total += float(y[place]) * b;
  out[place] = static_cast<T>(total);
}
