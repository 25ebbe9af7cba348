// The two as one dot product.
// BODY
uint here = thread_position_in_grid.x;
if (int(here) < n) {
  out[here] = T(dot(float2(a, b), float2(float(x[here]), float(y[here]))));
}
