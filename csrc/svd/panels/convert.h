// Pieces of matrices into panels, written once over the vector type of simd/<isa>.h. Each <isa>.cpp includes that, defines
//
//   void store_rounded(uint16_t*, Vec)      to bf16
//
// and includes an interleave header, then this. Contract: svd/panels.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "../../simd/load_as.h"
#include "../panels.h"

namespace gossamer {
namespace {

inline void store_element(float* p, Vec v) { store(p, v); }
inline void store_element(uint16_t* p, Vec v) { store_rounded(p, v); }

// 16 elements, zeros from `left` on.
template <class T, class Element>
inline void convert_16(const T* x, int64_t left, Element* out) {
    constexpr int64_t w = Vec::width;
    if (left >= 16) {
        for (int64_t j = 0; j < 16; j += w) store_element(out + j, load_as(x + j));
        return;
    }
    for (int64_t j = 0; j < 16; j += w) {
        const int64_t rest = left - j;
        store_element(out + j, rest >= w ? load_as(x + j) : rest > 0 ? load_tail(x + j, rest) : broadcast(0.0f));
    }
}

template <class Block, class T>
inline void convert_row(const T* x, int64_t columns, typename Block::A* line) {
    for (int64_t k = 0; k < columns; k += Block::chunk, line += kPanelRows * Block::chunk) {
        for (int64_t j = 0; j < Block::chunk; j += 16) convert_16(x + k + j, columns - k - j, line + j);
    }
}

template <class Block, class T>
void convert_rows_of(const SvdRows& rows) {
    for (int64_t r = 0; r < rows.stored_rows; ++r) {
        auto* line = static_cast<typename Block::A*>(rows.panels) + r / kPanelRows * rows.panel_stride + r % kPanelRows * Block::chunk;
        if (r < rows.rows) {
            convert_row<Block>(static_cast<const T*>(rows.x) + r * rows.x_row_stride, rows.columns, line);
        } else {
            for (int64_t k = 0; k < rows.columns; k += Block::chunk, line += kPanelRows * Block::chunk) std::memset(line, 0, 64);
        }
    }
}

template <class Block>
void convert_rows(const SvdRows& rows) {
    switch (rows.x_dtype) {
        case DType::f32: return convert_rows_of<Block, float>(rows);
        case DType::bf16: return convert_rows_of<Block, Bf16>(rows);
        case DType::f16: return convert_rows_of<Block, F16>(rows);
    }
}

// The line of B that begins with row k, 16 columns wide; rows from `rows` on are zero.
template <class T>
inline void convert_line(const T* x, const SvdPiece& piece, int64_t k, int64_t columns, float* line) {
    convert_16(x, k < piece.rows ? columns : 0, line);
}
template <class T>
inline void convert_line(const T* x, const SvdPiece& piece, int64_t k, int64_t columns, uint16_t* line) {
    uint16_t low[16], high[16];
    convert_16(x, k < piece.rows ? columns : 0, low);
    const bool second = k + 1 < piece.rows;
    convert_16(second ? x + piece.x_row_stride : x, second ? columns : 0, high);
    interleave(low, high, line);
}

template <class Block, class T>
void convert_columns_of(const SvdPiece& piece) {
    using Element = typename Block::B;
    for (int64_t k = 0; k < piece.K; k += Block::word) {
        // Rows that are padding are not read; their address stays inside.
        const T* x = static_cast<const T*>(piece.x) + (k < piece.rows ? k : 0) * piece.x_row_stride;
        Element* line = static_cast<Element*>(piece.panels) + k * kPanelColumns;
        for (int64_t c = 0; c < piece.columns; c += kPanelColumns, line += piece.panel_stride) {
            convert_line(x + c, piece, k, piece.columns - c, line);
        }
    }
}

template <class Block>
void convert_columns(const SvdPiece& piece) {
    switch (piece.x_dtype) {
        case DType::f32: return convert_columns_of<Block, float>(piece);
        case DType::bf16: return convert_columns_of<Block, Bf16>(piece);
        case DType::f16: return convert_columns_of<Block, F16>(piece);
    }
}

// A chunk of 16 columns: its lines are columns of x.
template <class Block>
inline void transpose_chunk(const float* x, const SvdPiece& piece, int64_t rows, int64_t columns, typename Block::A* lines) {
    typename Block::A values[Block::chunk][16];
    for (int64_t k = 0; k < Block::chunk; ++k) convert_16(k < rows ? x + k * piece.x_row_stride : x, k < rows ? columns : 0, values[k]);
    for (int64_t c = 0; c < 16; ++c) {
        for (int64_t k = 0; k < Block::chunk; ++k) lines[c * Block::chunk + k] = values[k][c];
    }
}

template <class Block>
void transpose_columns(const SvdPiece& piece) {
    for (int64_t k = 0; k < piece.K; k += Block::chunk) {
        const float* x = static_cast<const float*>(piece.x) + (k < piece.rows ? k : 0) * piece.x_row_stride;
        auto* lines = static_cast<typename Block::A*>(piece.panels) + k * kPanelRows;
        for (int64_t c = 0; c < piece.columns; c += kPanelRows, lines += piece.panel_stride) {
            transpose_chunk<Block>(x + c, piece, piece.rows - k, piece.columns - c, lines);
        }
    }
}

// 16 rows of 16 k lie in a panel of A as they do in one of B.
void turn_f32(const SvdTurn<float>& turn) {
    for (int64_t j = 0; j < turn.n_panels; ++j) {
        for (int64_t r = 0; r < turn.K; r += kPanelRows) {
            std::memcpy(turn.strip + (j * turn.K + r) * kPanelColumns, turn.panels + r / kPanelRows * turn.panel_stride + j * 256, 1024);
        }
    }
}

void turn_bf16(const SvdTurn<uint16_t>& turn) {
    for (int64_t r = 0; r < turn.K; r += 2) {
        const uint16_t* line = turn.panels + r / kPanelRows * turn.panel_stride + r % kPanelRows * Bf16Block::chunk;
        for (int64_t j = 0; j < turn.n_panels; ++j) {
            interleave(line + j * 16, line + Bf16Block::chunk + j * 16, turn.strip + (j * turn.K + r) * kPanelColumns);
        }
    }
}

void add_to_f64(const float* c, int64_t count, double* sum) {
    for (int64_t i = 0; i < count; ++i) sum[i] += static_cast<double>(c[i]);
}

constexpr SvdConversions<float> kToF32 = {convert_rows<F32Block>, convert_columns<F32Block>, transpose_columns<F32Block>, turn_f32};
constexpr SvdConversions<uint16_t> kToBf16 = {convert_rows<Bf16Block>, convert_columns<Bf16Block>, transpose_columns<Bf16Block>, turn_bf16};

}  // namespace
}  // namespace gossamer
