// Attention of queries to the keys and values of a cache.
#pragma once
#include "few_queries.h"
#include "many_queries.h"

constexpr int FEW_QUERIES = 4;  // a single sequence with more tokens is cut into pieces by tokens, otherwise by keys

// Attend from the queries of all sequences.
template <class Rows>
inline void attend(Pool& pool, const Heads& h, const Rows& keys, const Rows& values,
                   const std::vector<Queries>& sequences) {
  if (sequences.size() == 1 && sequences[0].count > FEW_QUERIES)
    attend_many(pool, h, keys, values, sequences[0]);
  else
    attend_few(pool, h, keys, values, sequences);
}
