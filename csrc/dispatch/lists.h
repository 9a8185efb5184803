// The lists of kernels, best first, one per family; cmake/isa.cmake generates their definitions.
#pragma once
#include <span>

#include "formats/bf16/expand.h"
#include "formats/four_bit/expand.h"
#include "formats/fp8/expand.h"
#include "formats/int8/expand.h"
#include "gossamer/bf16.h"
#include "gossamer/column_stats.h"
#include "gossamer/conv_kernels.h"
#include "gossamer/convert.h"
#include "gossamer/cpu.h"
#include "gossamer/epilogue.h"
#include "gossamer/f32.h"
#include "gossamer/obs.h"
#include "gossamer/quantize.h"
#include "gossamer/round_int4.h"
#include "gossamer/s8.h"
#include "gossamer/sparse_float.h"
#include "gossamer/sparse_s8.h"
#include "gossamer/u4.h"
#include "roofline/peak.h"
#include "spmm/f32/kernels.h"
#include "spmm/s8/kernels.h"
#include "svd/panels.h"

namespace gossamer {

std::span<const S8Kernels* const> s8_list();
std::span<const U4Kernels* const> u4_list();
std::span<const Bf16Kernels* const> bf16_list();
std::span<const F32Kernels* const> f32_list();
std::span<const SparseS8Kernels* const> sparse_s8_list();
std::span<const SparseFloatKernels* const> sparse_float_list();
std::span<const SpmmF32Kernels* const> spmm_f32_list();
std::span<const SpmmS8Kernels* const> spmm_s8_list();
std::span<const EpilogueKernels* const> epilogue_list();
std::span<const QuantizeKernels* const> quantize_list();
std::span<const ConvertKernels* const> convert_list();
std::span<const ConvKernels* const> conv_list();
std::span<const FourBitKernels* const> four_bit_list();
std::span<const RoundInt4Kernels* const> round_int4_list();
std::span<const Int8ExpandKernels* const> int8_expand_list();
std::span<const Fp8ExpandKernels* const> fp8_expand_list();
std::span<const Bf16ExpandKernels* const> bf16_expand_list();
std::span<const SvdPanelKernels* const> svd_panels_list();
std::span<const ObsKernels* const> obs_list();
std::span<const ColumnStatsKernels* const> column_stats_list();
std::span<const PeakKernels* const> peak_list();

// The first of a list that this machine has and that is not above `limit`; null where there is none (bf16_list has no scalar).
template <class Kernels>
const Kernels* find_kernels(std::span<const Kernels* const> list, Isa limit) {
    for (const Kernels* kernels : list) {
        if (kernels->isa <= limit && isa_available(kernels->isa)) return kernels;
    }
    return nullptr;
}

// The same for the lists that end in scalar, so that there is one.
template <class Kernels>
const Kernels& select_kernels(std::span<const Kernels* const> list, Isa limit) {
    const Kernels* found = find_kernels(list, limit);
    return found != nullptr ? *found : *list.back();
}

}  // namespace gossamer
