// The exercise `row_product` under the name that watch.cpp calls. row.h is a learner's, ours, or has several versions of
// it: VERSIONS(f) is then f(0) f(1) …, and version i lies in the namespace v<i>.
#include <row.h>

#include "watch.h"

const int lanes_of_exercise = LANES;

extern "C" void run_block(const Job& job, const void* numbers, const void* scalings, const float* x, const float* sums, float* out) {
  Format codes = job.bits == 4 ? Format::Codes4 : Format::Codes8;
  Weight w = {codes, (Format)job.scaling, job.rows, job.columns, job.group, numbers, scalings, nullptr};
#define PRODUCT(of) store(out, job.bits == 4 ? of row_product<4>(w, job.block, {x, sums}) : of row_product<8>(w, job.block, {x, sums}))
#ifdef VERSIONS
#define PRODUCT_OF(i) if (job.version == i) PRODUCT(v##i::);
  VERSIONS(PRODUCT_OF)
#else
  PRODUCT();
#endif
}
