// The lists of kernels, best first, one per family; cmake/isa.cmake generates their definitions.
#pragma once
#include <span>

#include "gossamer/cpu.h"
#include "gossamer/epilogue.h"
#include "gossamer/quantize.h"
#include "gossamer/s8.h"
#include "roofline/peak.h"

namespace gossamer {

std::span<const S8Kernels* const> s8_list();
std::span<const EpilogueKernels* const> epilogue_list();
std::span<const QuantizeKernels* const> quantize_list();
std::span<const PeakKernels* const> peak_list();

// The first of a list that this machine has and that is not above `limit`. Each list of kernels ends in scalar, so there is one.
template <class Kernels>
const Kernels& select_kernels(std::span<const Kernels* const> list, Isa limit) {
    for (const Kernels* kernels : list) {
        if (kernels->isa <= limit && isa_available(kernels->isa)) return *kernels;
    }
    return *list.back();
}

}  // namespace gossamer
