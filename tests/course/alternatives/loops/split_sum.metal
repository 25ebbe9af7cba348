// A pointer that steps from split to split.
// BODY
const uint me = thread_position_in_grid.x;
float total = 0.0f;
for (uint at = me; me < uint(n) && at < uint(n * SPLITS); at += uint(n)) {
  total = total + parts[at];
}
if (me < uint(n)) {
  out[me] = T(total);
}
