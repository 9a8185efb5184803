// Rows of a packed table, whatever its format.
//
//   embedding        out[i,k] = W[indices[i], k]
//   embedding_bag    out[b,k] = reduce( w[i] * W[indices[i], k] : offsets[b] <= i < offsets[b+1], indices[i] != padding_idx )
//
// W [N, K] packed: N rows of the table (num_embeddings), K values each (embedding_dim). out contiguous [count, K] or [bags, K], rounded to
// its dtype from fp32: the values are those of dequantize() to the bit, bags are reduced in fp32 in the order of their indices.
//
// Layout: row n lies spread over the panel of its 16 columns (lane.h): 2, 4 or 8 k in each 64-byte line. A lookup reads the panel's lines
// in sequence, one piece of each. Every ISA runs the same code: memory is the whole cost.
//
// Indices outside [0, N) throw before anything is written.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/linear.h"

namespace gossamer {

struct EmbeddingCall {
    const Weight& weight;
    const int64_t* indices;  // [count]
    int64_t count;
    void* out;  // [count, K]
    DType out_dtype;
    int threads;
};

// Throws std::out_of_range, with torch's message.
void embedding(const EmbeddingCall& call);

enum class BagMode : int { sum, mean, max };

struct EmbeddingBagCall {
    const Weight& weight;
    const int64_t* indices;  // [count]
    int64_t count;
    const int64_t* offsets;  // [bags + 1], from 0, never falling, at most count; unread for 0 bags
    int64_t bags;
    const float* sample_weights;  // [count] or null, for sums
    BagMode mode;
    int64_t padding_idx;  // rows of this index are left out of their bag; -1: none
    void* out;            // [bags, K]; zeros for an empty bag
    DType out_dtype;
    int threads;
};

// Throws std::runtime_error for indices, std::invalid_argument for offsets.
void embedding_bag(const EmbeddingBagCall& call);

}  // namespace gossamer
