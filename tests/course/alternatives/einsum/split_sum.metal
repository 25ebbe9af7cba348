// From the last split to the first.
// BODY
const int i = int(thread_position_in_grid.x);
if (i < n) {
  float total = parts[(SPLITS - 1) * n + i];
  for (int s = SPLITS - 2; s >= 0; s--) {
    total += parts[s * n + i];
  }
  out[i] = T(total);
}
