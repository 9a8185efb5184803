// The low-rank part of a product: T = A(x) V^T for the rows of a slab, by the whole team, then T U^T as an addend of each cell of a base.
//
// In one parallel region, between the filling of the base's panels of x and its cells (walk.h):
//
//     x -> panels   |barrier|   cells of V -> T   |barrier|   T -> panels   |barrier|   cells of the base, or of U where there is none
//
// Numerics: linear.h. V multiplies the panels of the base where they are of its lane and each row has one scale, else panels of its own.
// With at most kPrivateRows rows every thread makes all panels for itself, and only the barrier behind T is left.
#pragma once
#include <cstdint>
#include <memory>

#include "gossamer/linear.h"
#include "gossamer/parallel.h"
#include "grid.h"

namespace gossamer {

// What falls to one thread in one slab.
struct SlabShare {
    int64_t slab, rows;   // the first row of the source, and how many
    Range mine;           // rows that this thread makes panels of
    bool private_copies;  // all of them, for itself
    Team team;
};

// The caller's addend of a cell, at its first element; null: none.
struct CellAddend {
    const float* values;
    int64_t row_stride;
};

class Branch {
public:
    virtual ~Branch() = default;

    virtual int64_t row_bytes() const = 0;  // of the longest row of panels, for the size of a slab
    virtual void reserve(int64_t slab_rows, int threads) = 0;
    // Called by every thread of the team once it has filled its rows of the base's panels, which begin at a_panels: T, then its panels.
    // What the thread writes of those is for the others to read behind another barrier.
    virtual void project(const SlabShare& share, uint8_t* a_panels) = 0;
    // Around the cells of a thread (LaneKernels::begin).
    virtual void begin_cells(int rank) const = 0;
    virtual void end_cells() const = 0;
    // tile [rows of the cell][32] = T U^T + addend, for the thread `rank`
    virtual void add(int rank, const Cell& cell, const CellAddend& addend, float* tile) const = 0;
};

// Of a sum whose base is multiplied as the call says. Throws std::invalid_argument where the rows cannot fill the panels that V needs.
std::unique_ptr<Branch> make_branch(const ProductCall& call, const Weight& base, const LowRankWeight& weight);

}  // namespace gossamer
