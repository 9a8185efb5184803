// Products with a low-rank weight, alone or beside another.
#include "low_rank.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "up_projection.h"
#include "walk.h"

namespace gossamer {
namespace {

thread_local Workspace low_rank_workspace;

// Columns [16 first, 16 (first + count)) of a factor; the bytes are those of the whole.
Weight columns_of(const Weight& weight, int64_t first, int64_t count) {
    Weight part = weight;
    part.N = std::min(weight.N - first * kPanelColumns, count * kPanelColumns);
    const int64_t before = first * kPanelColumns * round_up(weight.K, 64);
    if (auto* int8 = std::get_if<Int8Weight>(&part.form)) {
        int8->panels += before;
        int8->scales += first * kPanelColumns;
        int8->init += first * kPanelColumns;
    } else if (auto* bf16 = std::get_if<Bf16Weight>(&part.form)) {
        bf16->panels += before;
    } else {
        std::get<F32Weight>(part.form).panels += before;
    }
    return part;
}

// Rows of T into panels of its lane.
void make_panels(const void* T, int64_t stride, int64_t R, Range rows, Isa isa, const Panels<S8Block>& to) {
    select_kernels(quantize_list(), isa).run({T, DType::f32, stride, rows.begin, rows.end, R, to.panel_rows, to.data, to.scale});
}
void make_panels(const void* T, int64_t stride, int64_t R, Range rows, Isa, const Panels<Bf16Block>& to) {
    copy_rows_bf16({T, DType::bf16, stride, rows.begin, rows.end, R, to.panel_rows, to.data});
}
void make_panels(const void* T, int64_t stride, int64_t R, Range rows, Isa isa, const Panels<F32Block>& to) {
    select_kernels(convert_list(), isa).to_f32({T, DType::f32, stride, rows.begin, rows.end, R, to.panel_rows, to.data});
}

template <class Block>
class LowRankBranch final : public Branch {
    static constexpr DType kDType = std::is_same_v<Block, Bf16Block> ? DType::bf16 : DType::f32;

public:
    // shares: V multiplies the panels that it is given.
    LowRankBranch(const ProductCall& call, const LowRankWeight& weight, bool shares)
        : call_(call), weight_(weight), shares_(shares), T_stride_(round_up(weight.R, kStripColumns)), up_(call, *weight.U) {}

    int64_t row_bytes() const override {
        return round_up(std::max(weight_.K, weight_.R), Block::chunk) * static_cast<int64_t>(sizeof(typename Block::A));
    }

    void reserve(int64_t slab_rows, int threads) override {
        T_bytes_ = slab_rows * T_stride_ * size_bytes(kDType);
        x_bytes_ = shares_ ? 0 : Panels<Block>::size_bytes(slab_rows, weight_.K, 0);
        up_bytes_ = Panels<Block>::size_bytes(slab_rows, weight_.R, 0);
        const int64_t copies = call_.M <= kPrivateRows ? threads : 1;
        T_ = low_rank_workspace.reserve(T_bytes_ + copies * (x_bytes_ + up_bytes_));
        rows_of_T_.assign(static_cast<size_t>(threads), {});
    }

    void project(const SlabShare& share, uint8_t* a_panels) override {
        uint8_t* own = T_ + T_bytes_ + (share.private_copies ? share.team.rank * (x_bytes_ + up_bytes_) : 0);
        const Panels<Block> x(shares_ ? a_panels : own, share.rows, weight_.K, 0);
        std::optional<Panels<Block>>& t = rows_of_T_[static_cast<size_t>(share.team.rank)];
        t.emplace(own + x_bytes_, share.rows, weight_.R, 0);
        if (!shares_) call_.rows.fill(x.target(share.slab, share.mine));
        if (!share.private_copies) share.team.barrier();
        project_down(x, share);
        share.team.barrier();
        make_panels(T_, T_stride_, weight_.R, share.mine, call_.isa, *t);
    }

    void begin_cells(int rank) const override { up_.begin(rows_of_T(rank).panel_rows); }
    void end_cells() const override { up_.end(); }
    void add(int rank, const Cell& cell, const CellAddend& addend, float* tile) const override {
        up_.tile(rows_of_T(rank), cell, addend, tile);
    }

    // T of the slab, as this thread has it.
    const Panels<Block>& rows_of_T(int rank) const { return *rows_of_T_[static_cast<size_t>(rank)]; }

private:
    // Threads share T by panels of 16 columns, of which there are few.
    void project_down(const Panels<Block>& x, const SlabShare& share) const {
        const Share part = choose_share(share.rows, x.panel_rows, ceil_div(weight_.R, kPanelColumns), share.team);
        const int64_t rows = part.rows.end - part.rows.begin, panels = part.strips.end - part.strips.begin;
        if (rows == 0 || panels == 0) return;
        const Weight columns = columns_of(*weight_.V, part.strips.begin, panels);
        Epilogue to_T;
        to_T.out = T_ + (part.rows.begin * T_stride_ + part.strips.begin * kPanelColumns) * size_bytes(kDType);
        to_T.out_dtype = kDType;
        to_T.out_row_stride = T_stride_;
        const ProductCall down{call_.rows, call_.M, columns, call_.lane, to_T, 1, call_.isa};
        run_slab(down, x.from(part.rows.begin), 0, rows, Team{0, 1});
    }

    const ProductCall& call_;
    const LowRankWeight& weight_;
    bool shares_;
    int64_t T_stride_;  // elements
    UpProjection<Block> up_;
    int64_t T_bytes_ = 0, x_bytes_ = 0, up_bytes_ = 0;
    uint8_t* T_ = nullptr;                                 // [rows][T_stride], then for each copy: panels of x, panels of T
    std::vector<std::optional<Panels<Block>>> rows_of_T_;  // of each thread
};

// The cells of U finish as the caller wants it.
template <class Block>
void run_low_rank(const ProductCall& call, const LowRankWeight& weight) {
    ProductCall down{call.rows, call.M, *weight.V, call.lane, {}, call.threads, call.isa};
    LowRankBranch<Block> branch(down, weight, true);
    down.branch = &branch;
    const ProductCall up{call.rows, call.M, *weight.U, call.lane, call.epilogue, call.threads, call.isa};
    const double count = static_cast<double>(weight.R) * static_cast<double>(weight.N + weight.K);
    const bool s8 = std::is_same_v<Block, S8Block>;
    const Work work{(s8 ? 1 : 2) * count, count * static_cast<double>(call.M), s8 ? 150e3 : 40e3};
    for_each_slab<Block>(
        down, {useful_threads(work, call.threads)}, kNothingMore,
        [&](const Panels<Block>& a, int64_t slab, int64_t rows, Team team) { run_slab(up, branch.rows_of_T(a.rank), slab, rows, team); });
}

// The lane of a branch beside a base that is multiplied on the lane of the call.
Lane branch_lane(const ProductCall& call, const LowRankWeight& weight) {
    if (weight.V->activations == Activations::int8) return Lane::s8;
    if (is_wide(weight)) return Lane::f32;
    if (call.lane != Lane::s8) return call.lane;
    return call.rows.fills(Lane::bf16) && find_kernels(bf16_list(), call.isa) != nullptr ? Lane::bf16 : Lane::f32;
}

void check_branch(const ProductCall& call, const LowRankWeight& weight, Lane lane, bool shares) {
    if (!shares && !call.rows.fills(lane)) {
        throw std::invalid_argument(std::string("product: weight: sum: got a low-rank part on lane ") + name(lane) +
                                    " beside a base on lane " + name(call.lane) +
                                    ", wanted the same: the rows fill panels of that one only");
    }
    if (lane == Lane::s8 && weight.R > kMaxSumK) {
        throw std::invalid_argument("product: weight: sum: rank: got " + std::to_string(weight.R) + ", wanted at most " +
                                    std::to_string(kMaxSumK) + " for int8 factors");
    }
}

}  // namespace

std::unique_ptr<Branch> make_branch(const ProductCall& call, const Weight& base, const LowRankWeight& weight) {
    const Lane lane = branch_lane(call, weight);
    const bool shares = lane == call.lane && base.activations != Activations::int8_group;
    check_branch(call, weight, lane, shares);
    switch (lane) {
        case Lane::s8: return std::make_unique<LowRankBranch<S8Block>>(call, weight, shares);
        case Lane::bf16: return std::make_unique<LowRankBranch<Bf16Block>>(call, weight, shares);
        case Lane::f32: break;
    }
    return std::make_unique<LowRankBranch<F32Block>>(call, weight, shares);
}

void product_low_rank(const ProductCall& call, const LowRankWeight& weight) {
    switch (call.lane) {
        case Lane::s8: return run_low_rank<S8Block>(call, weight);
        case Lane::bf16: return run_low_rank<Bf16Block>(call, weight);
        case Lane::f32: return run_low_rank<F32Block>(call, weight);
    }
}

void product_sum(const ProductCall& call, const SumWeight& weight) {
    const std::unique_ptr<Branch> branch = make_branch(call, *weight.base, std::get<LowRankWeight>(weight.low_rank->form));
    ProductCall base{call.rows, call.M, *weight.base, call.lane, call.epilogue, call.threads, call.isa, call.path};
    base.branch = branch.get();
    product(base);
}

}  // namespace gossamer
