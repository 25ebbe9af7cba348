// Turn each pair of x by its angle. One thread for each pair of a token; it goes over all heads, so that cos and sin
// are read once.
// x, out (T, H, D) of type T; cosine, sine (T, D/2) float; tokens and heads int.
// HALVES: pairs are (i, i + D/2), as in the Hugging Face weights; else (2i, 2i + 1), as in the paper.
// BODY
const uint pair = thread_position_in_grid.x, token = thread_position_in_grid.y;
if (pair >= D / 2 || token >= uint(tokens)) {
  return;
}
const float c = cosine[token * (D / 2) + pair], s = sine[token * (D / 2) + pair];
const uint left = HALVES ? pair : 2 * pair, right = HALVES ? pair + D / 2 : 2 * pair + 1;
for (int head = 0; head < heads; head++) {
  const uint row = (token * uint(heads) + head) * D;
  const float a = float(x[row + left]), b = float(x[row + right]);
  out[row + left] = T(a * c - b * s);
  out[row + right] = T(b * c + a * s);
}
