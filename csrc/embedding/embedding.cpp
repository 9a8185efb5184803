// Looking up rows and reducing bags of them. Contract: embedding.h.
#include "gossamer/embedding.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "gossamer/parallel.h"
#include "read_row.h"

namespace gossamer {
namespace {

constexpr int64_t kValuesPerThread = 1 << 15;  // below this a thread costs more to wake than it saves

// The place of the first index outside [0, N), or count.
int64_t find_wrong_index(const int64_t* indices, int64_t count, int64_t N) {
    return std::find_if(indices, indices + count, [N](int64_t index) { return index < 0 || index >= N; }) - indices;
}

void check_offsets(const EmbeddingBagCall& call) {
    if (call.bags == 0) return;
    const int64_t last = call.offsets[call.bags];
    const bool sorted = std::is_sorted(call.offsets, call.offsets + call.bags + 1);
    if (call.offsets[0] == 0 && sorted && last <= call.count) return;
    throw std::invalid_argument("embedding_bag: offsets: must begin with 0, never fall, and end at " + std::to_string(call.count) +
                                " or before; got " + std::to_string(call.offsets[0]) + " to " + std::to_string(last) +
                                (sorted ? "" : ", falling in between"));
}

int64_t padded_row(const Weight& weight) { return round_up(weight.K, 64); }

int team_size(const Weight& weight, int64_t rows, int threads) {
    return static_cast<int>(std::clamp<int64_t>(rows * weight.K / kValuesPerThread, 1, threads));
}

// Rounds a row of K values into row i of out.
void store_row(const float* row, int64_t K, int64_t i, void* out, DType dtype) {
    if (dtype == DType::f32) {
        std::memcpy(static_cast<float*>(out) + i * K, row, sizeof(float) * static_cast<size_t>(K));
        return;
    }
    uint16_t* to = static_cast<uint16_t*>(out) + i * K;
    for (int64_t k = 0; k < K; ++k) dtype == DType::bf16 ? store_bf16(to + k, {row[k]}) : store_f16(to + k, {row[k]});
}

struct Bag {
    float* total;  // [K]
    int64_t rows;
};

void add_to_sum(Bag& bag, const float* row, int64_t K, float weight) {
    for (int64_t k = 0; k < K; ++k) bag.total[k] += weight * row[k];
    ++bag.rows;
}

// As torch: a NaN stays if it came first, and is passed over otherwise.
void add_to_max(Bag& bag, const float* row, int64_t K) {
    for (int64_t k = 0; k < K; ++k) bag.total[k] = bag.rows == 0 || row[k] > bag.total[k] ? row[k] : bag.total[k];
    ++bag.rows;
}

// Reduces bag b into `total`; `row` is room for one row.
template <class Form>
void reduce_bag(const EmbeddingBagCall& call, const Form& form, int64_t b, float* total, float* row) {
    const int64_t K = call.weight.K;
    Bag bag{total, 0};
    std::fill(total, total + K, 0.0f);
    for (int64_t i = call.offsets[b]; i < call.offsets[b + 1]; ++i) {
        if (call.indices[i] == call.padding_idx) continue;
        read_row(form, call.indices[i], row);
        if (call.mode == BagMode::max) {
            add_to_max(bag, row, K);
        } else {
            add_to_sum(bag, row, K, call.sample_weights == nullptr ? 1.0f : call.sample_weights[i]);
        }
    }
    if (call.mode != BagMode::mean || bag.rows == 0) return;
    for (int64_t k = 0; k < K; ++k) total[k] /= static_cast<float>(bag.rows);
}

}  // namespace

void embedding(const EmbeddingCall& call) {
    if (find_wrong_index(call.indices, call.count, call.weight.N) < call.count) throw std::out_of_range("index out of range in self");
    const int64_t K64 = padded_row(call.weight);
    const int threads = team_size(call.weight, call.count, call.threads);
    const auto rows = std::make_unique<float[]>(static_cast<size_t>(threads * K64));
    const auto look_up = [&](const auto& form) {
        parallel(threads, [&](Team team) {
            float* row = rows.get() + team.rank * K64;
            const Range range = split_range(call.count, team.rank, team.size);
            for (int64_t i = range.begin; i < range.end; ++i) {
                read_row(form, call.indices[i], row);
                store_row(row, call.weight.K, i, call.out, call.out_dtype);
            }
        });
    };
    std::visit(look_up, call.weight.form);
}

void embedding_bag(const EmbeddingBagCall& call) {
    check_offsets(call);
    const int64_t count = call.bags == 0 ? 0 : call.offsets[call.bags];  // what comes after is in no bag
    const int64_t wrong = find_wrong_index(call.indices, count, call.weight.N);
    if (wrong < count) {
        throw std::runtime_error("embedding_bag: Expected idx >= 0 && idx < num_embeddings but found idx to be " +
                                 std::to_string(call.indices[wrong]));
    }
    const int64_t K64 = padded_row(call.weight);
    const int threads = team_size(call.weight, std::max(count, call.bags), call.threads);
    const auto rows = std::make_unique<float[]>(static_cast<size_t>(2 * threads * K64));
    const auto reduce = [&](const auto& form) {
        parallel(threads, [&](Team team) {
            float *total = rows.get() + 2 * team.rank * K64, *row = total + K64;
            const Range range = split_range(call.bags, team.rank, team.size);
            for (int64_t b = range.begin; b < range.end; ++b) {
                reduce_bag(call, form, b, total, row);
                store_row(total, call.weight.K, b, call.out, call.out_dtype);
            }
        });
    };
    std::visit(reduce, call.weight.form);
}

}  // namespace gossamer
