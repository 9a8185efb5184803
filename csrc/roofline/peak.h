// One instruction whose throughput is measured from registers.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

struct PeakKernels {
    Isa isa;
    const char* instruction;
    double ops_per_call;  // a multiply-add is two
    void (*run)(int64_t calls);
};

}  // namespace gossamer
